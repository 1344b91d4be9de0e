"""One learner on a journal, a real PostgreSQL included, and a learner that goes by the clock: real processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from online_align.learner_lock import LearnerLockedError, only_learner
from online_align.pair_store import PairStore
from online_align.round_plan import RoundFiles, Stage
from server.journal import Journal, open_journal
from tests.align.test_learn_command import until
from tests.align.test_rounds import CALLS, some
from tests.journal.calls import record
from tests.journal.conftest import postgres, postgres_journal
from tests.tiny_checkpoint import write_tiny_checkpoint

__all__ = ["postgres", "postgres_journal"]

HOLDER = (
    "import sys, pathlib\nfrom online_align.learner_lock import only_learner\n"
    "from server.journal import open_journal\n"
    "folder = pathlib.Path(sys.argv[1])\njournal = open_journal(folder, sys.argv[2])\n"
    "with only_learner(journal.engine, folder):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
)


@contextlib.contextmanager
def another_learner(folder: Path, url: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that is the only learner, on another machine as far as folders tell."""
    command = [sys.executable, "-c", HOLDER, str(folder), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            yield other
        finally:
            other.kill()


def test_two_machines_on_one_postgresql(postgres_journal: Journal, postgres: str, tmp_path: Path) -> None:
    """Their folders are different, so only the database can tell; and it forgets who was killed."""
    with another_learner(tmp_path / "there", postgres) as other:
        with (
            pytest.raises(LearnerLockedError, match=r"a second learner on postgresql.*stop the other one"),
            only_learner(postgres_journal.engine, tmp_path / "here"),
        ):
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        until(lambda: _is_free(postgres_journal, tmp_path / "here"), 30)
    with only_learner(postgres_journal.engine, tmp_path / "here"):
        pass
    with only_learner(postgres_journal.engine, tmp_path / "here"):
        pass


def _is_free(journal: Journal, folder: Path) -> bool:
    try:
        with only_learner(journal.engine, folder):
            return True
    except LearnerLockedError:
        return False


def test_the_database_lets_go_when_a_learner_fails(postgres_journal: Journal, tmp_path: Path) -> None:
    def fail() -> None:
        with only_learner(postgres_journal.engine, tmp_path):
            raise MemoryError

    for _ in range(3):
        with pytest.raises(MemoryError):
            fail()
    assert _is_free(postgres_journal, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_process_on_one_postgresql_says_so_and_learns_nothing(
    postgres_journal: Journal, postgres: str, tmp_path: Path
) -> None:
    where = ["--data-dir", str(tmp_path / "here"), "--no-collect", "--no-release", "--priority", "normal"]
    command = [sys.executable, "-m", "online_align", "once", *where]
    environment = os.environ | {"DUOLOGUE_JOURNAL_URL": postgres}
    with another_learner(tmp_path / "there", postgres):
        refused = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert refused.returncode == 1
    assert "a second learner on postgresql" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "here" / "learner" / "rounds").exists()


@contextlib.contextmanager
def learning(data: Path, tiny: str, *flags: str) -> Iterator[None]:
    """`duologue-align run` for as long as the block lasts."""
    where = ["--data-dir", str(data), "--checkpoint", tiny, "--no-collect", "--no-release", "--priority", "normal"]
    more = ["--pairs-per-round", "50", "--poll-s", "0.1", "--rank", "2", *flags]
    log = data / "log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "online_align", "run", *where, *more]
        with subprocess.Popen(command, stderr=out, stdout=out) as learner:
            try:
                yield
            finally:
                learner.send_signal(signal.SIGTERM)
    assert learner.returncode == 0, log.read_text()[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_goes_by_the_clock(tmp_path: Path) -> None:
    """Fewer pairs than a round is due at: with a clock one is made all the same, and none where nothing waits."""
    tiny, data = str(write_tiny_checkpoint(tmp_path / "tiny")), tmp_path / "data"
    journal = open_journal(data)
    record(journal, CALLS, 3)
    store, files = PairStore(journal), RoundFiles(data / "learner" / "rounds")

    def rounds() -> list[int]:
        return [len(each.pairs) for each in files.all() if each.stage is Stage.DONE]

    store.add(some(range(2)))
    with learning(data, tiny, "--every", "1"):
        until(lambda: rounds() == [2])
        time.sleep(2.5)
        assert rounds() == [2], "nothing waited"
        store.add(some(range(2, 5)))
        until(lambda: rounds() == [2, 3])
    store.add(some(range(5, 6)))
    looked = data / "learner" / "metrics.prom"
    looked.unlink()
    with learning(data, tiny, "--every", "0"):
        until(looked.exists)
        time.sleep(2.5)
    assert rounds() == [2, 3], "without a clock one pair goes on waiting"
    journal.engine.dispose()
