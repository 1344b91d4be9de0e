"""Old calls go away by themselves, also while nobody calls; where nothing was kept nothing is made."""

import time
from pathlib import Path

from server.journal import open_journal
from server.retention import Retention
from tests.journal.calls import recording, session, tick

DAY_S = 86_400.0


def test_what_is_too_old_is_deleted_and_the_rest_stays(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    with recording(journal) as writer:
        for name, age_s in (("old", 3 * DAY_S), ("new", DAY_S)):
            writer.begin(session(name, started_at=time.time() - age_s))
            writer.frames(tick([name], 0))
            writer.end(name, "hang_up")
        writer.begin(session("open", started_at=time.time() - 3 * DAY_S))
        writer.frames(tick(["open"], 0))
        while not writer.figures.commits or writer.waiting:
            time.sleep(0.01)
        retention = Retention(data_dir=tmp_path, journal_url=None, days=2.0, every_s=0.05)
        retention.start()
        while "old" in [row.id for row in journal.reader.sessions()]:
            time.sleep(0.01)
        retention.stop()
    assert {row.id for row in journal.reader.sessions()} == {"new", "open"}
    assert sorted(journal.keys) == ["new", "open"]
    journal.engine.dispose()


def test_where_nothing_is_kept_nothing_is_made(tmp_path: Path) -> None:
    retention = Retention(data_dir=tmp_path / "data", journal_url=None, days=1.0, every_s=0.01)
    retention.start()
    time.sleep(0.1)
    retention.stop()
    assert not (tmp_path / "data").exists()
