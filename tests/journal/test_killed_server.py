"""kill -9 of a whole server under load: what is in the journal is whole, old things are in it, and it goes on."""

from pathlib import Path

from server.journal import open_journal
from tests.journal.killed_server import damage, differing, judge, kill_in_the_middle
from tests.tiny_checkpoint import write_tiny_checkpoint

LONG_AGO_S = 4.0
"""The claim is 1 s and is measured, not tested: a machine at work elsewhere may hold a thread up for longer."""


def test_a_killed_server_has_kept_what_is_not_new_and_the_next_one_goes_on(tmp_path: Path) -> None:
    checkpoint, data = write_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "data"
    lost, ends = [], []
    for after_s in (4.0, 4.5):  # long enough for the first to have begun recording, on a busy machine, too
        heard, killed_at = kill_in_the_middle(checkpoint, data, callers=3, after_s=after_s)
        journal = open_journal(data)
        try:
            assert not damage(journal)
            assert not differing(checkpoint, journal, [each.session for each in heard])
            lost += [judge(journal, each, killed_at) for each in heard]
            ends = [row.end_reason for row in journal.reader.sessions()]
        finally:
            journal.engine.dispose()
    assert len(lost) == 6
    assert max(max(each.frames_s, each.signals_s) for each in lost) < LONG_AGO_S
    assert max(each.frames for each in lost) > 10
    assert "crashed" in ends, "the second server has closed what the first one left open"
