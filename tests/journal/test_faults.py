"""kill -9, a full disk, failing commits, two writers, a clock that goes back, and a disk slower than the tick."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from server.journal import Journal, JournalLockedError, exclusive, open_journal
from tests.journal.calls import barge_in, record, recording, session, tick, tokens

ROOT = Path(__file__).parents[2]


def test_killed_at_any_moment_nothing_durable_is_lost_and_nothing_is_broken(tmp_path: Path) -> None:
    """What the child said was durable is there. How soon it is so is the benchmark's matter."""
    draw, ever = random.Random(5), 0
    for round_number in range(5):
        command = [sys.executable, "-m", "tests.journal.endless", str(tmp_path / "data"), f"call{round_number}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "recording\n"
            time.sleep(draw.uniform(0.05, 2.0))
            child.send_signal(signal.SIGKILL)
            *lines, _ = child.stdout.read().split("\n")  # the last one may be cut short
        durable = int(lines[-1].split()[1]) if lines else 0
        ever += durable
        journal = open_journal(tmp_path / "data")
        assert not [fault for fault in journal.reader.verify() if fault.what != "a key without a session"]
        known = [row.id for row in journal.reader.sessions()]
        if f"call{round_number}" in known:
            columns = journal.reader.columns(f"call{round_number}")
            for number, row in zip(columns.ticks_T.tolist(), columns.tokens_TK, strict=True):
                assert row.tolist() == tokens(f"call{round_number}", number).tolist()
            assert columns.ticks_T.tolist()[:durable] == list(range(durable))
            assert len(columns.ticks_T) >= durable
        else:
            assert not durable
        journal.engine.dispose()
    assert ever > 10
    journal = open_journal(tmp_path / "data")
    record(journal, ["after"], 3)
    reasons = {row.id: row.end_reason for row in journal.reader.sessions()}
    assert reasons.pop("after") == "hang_up"
    assert set(reasons.values()) == {"crashed"}
    journal.engine.dispose()


def test_a_full_disk_is_counted_and_told_and_gets_well(sqlite_journal: Journal) -> None:
    journal = sqlite_journal

    @event.listens_for(journal.engine, "connect")
    def small(connection: object, _record: object) -> None:
        if full:
            connection.execute("PRAGMA max_page_count=40")  # type: ignore[attr-defined]

    full = True
    journal.engine.dispose()
    with recording(journal) as writer:
        writer.begin(session("abc"))
        number = 0
        while writer.healthy and number < 20_000:
            writer.frames(tick(["abc"], number))
            number += 1
            time.sleep(0.0005)
        assert "full" in writer.problem
        durable = writer.figures.durable_frames
        assert writer.figures.failed_commits >= 1
        full = False
        for later in range(number, number + 60):
            writer.frames(tick(["abc"], later))
            time.sleep(0.002)
    assert writer.healthy
    assert writer.figures.durable_frames > durable
    assert writer.figures.lost_frames > 0
    there = journal.reader.columns("abc").ticks_T
    assert len(there) == writer.figures.durable_frames, "what was counted durable is there, and nothing else"
    assert any("a gap of" in fault.what for fault in journal.reader.verify())


@pytest.mark.parametrize("what", ["commit", "insert"])
def test_a_failing_commit_acknowledges_nothing(sqlite_journal: Journal, what: str) -> None:
    journal = sqlite_journal
    broken = True

    def fail(*_: object) -> None:
        if broken:
            raise OperationalError("COMMIT", {}, OSError(5, "Input/output error"))

    with recording(journal) as writer:
        writer.begin(session("abc"))
        writer.frames(tick(["abc"], 0))
        while not writer.figures.commits:
            time.sleep(0.01)
        event.listen(journal.engine, "commit" if what == "commit" else "before_cursor_execute", fail)
        for number in range(1, 13):
            writer.frames(tick(["abc"], number))
        while writer.healthy:
            time.sleep(0.01)
        assert writer.figures.durable_frames == 0
        assert "Input/output" in writer.problem
        broken = False
        for number in range(13, 25):
            writer.frames(tick(["abc"], number))
    assert writer.figures.lost_frames + writer.figures.durable_frames == 25
    assert len(journal.reader.columns("abc").ticks_T) == writer.figures.durable_frames


def test_a_second_writer_is_refused(journal: Journal, tmp_path: Path) -> None:
    other = open_journal(tmp_path / "data", _url(journal.engine))
    with (
        exclusive(journal.engine, tmp_path / "data"),
        pytest.raises(JournalLockedError, match="second server"),
        exclusive(other.engine, tmp_path / "data"),
    ):
        pass
    with exclusive(other.engine, tmp_path / "data"):
        pass
    other.engine.dispose()


def _url(engine: Engine) -> str | None:
    return None if engine.dialect.name == "sqlite" else engine.url.render_as_string(hide_password=False)


def test_a_clock_that_goes_back_changes_no_order(journal: Journal) -> None:
    times = iter(range(1_000_000, 0, -1))
    with recording(journal, clock=lambda: float(next(times))) as writer:
        writer.begin(session("abc", started_at=2_000_000.0))
        for number in range(30):
            writer.frames(tick(["abc"], number))
        writer.consent("abc", keep=True, train=False)
        writer.end("abc", "hang_up")
    about = journal.reader.session("abc")
    assert about.ended_at is not None
    assert about.ended_at >= about.started_at
    assert journal.reader.columns("abc").ticks_T.tolist() == list(range(30))


def test_a_slow_disk_costs_frames_before_signals_and_never_waits(sqlite_journal: Journal) -> None:
    journal = sqlite_journal
    slow = False
    waits, goes_on = threading.Event(), threading.Event()

    @event.listens_for(journal.engine, "commit")
    def wait(_: object) -> None:
        if slow:
            waits.set()
            assert goes_on.wait(60)

    with recording(journal, most_waiting=20) as writer:
        writer.begin(session("abc"))
        writer.signal("abc", barge_in(1000))
        while not writer.figures.commits:
            time.sleep(0.01)
        slow = True
        writer.signal("abc", barge_in(1001))
        assert waits.wait(60)
        commits = writer.figures.commits
        for number in range(100):
            writer.frames(tick(["abc"], number))
            if number % 10 == 0:
                writer.signal("abc", barge_in(1 + number))
        assert writer.figures.commits == commits, "all of it was taken while the disk had not answered"
        slow = False
        goes_on.set()
    assert writer.figures.dropped_frames > 50
    assert writer.figures.dropped_signals == 0
    assert len(journal.reader.signals("abc")) == 12
    assert len(journal.reader.columns("abc").ticks_T) + writer.figures.dropped_frames == 100


def test_frames_left_out_are_a_gap_that_verify_names(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.begin(session("abc"))
        for number in [*range(10), *range(14, 20)]:
            writer.frames(tick(["abc"], number))
        writer.end("abc", "hang_up")
    assert journal.reader.columns("abc").ticks_T.tolist() == [*range(10), *range(14, 20)]
    assert [fault.what for fault in journal.reader.verify()] == ["a gap of 4 frames before frame 14"]


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"cannot be opened.*data_dir"):
        open_journal(tmp_path / "file" / "data")


def test_commits_are_on_the_disk(sqlite_journal: Journal) -> None:
    with sqlite_journal.engine.connect() as connection:
        names = ("journal_mode", "synchronous", "secure_delete")
        settings = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in names]
    assert settings == ["wal", 2, 1]
    folder = Path(sqlite_journal.engine.url.database or "").parent / "keys"
    for private in (folder, folder.parent):
        assert private.stat().st_mode & 0o777 == 0o700, "what is not sealed is nobody else's business either"
