"""How many threads of a real `duologue-align once` compute while it trains the embedded model."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from online_align.pair_store import PairStore
from online_align.round_plan import RoundFiles, Stage
from server.journal import open_journal
from tests.align.preferences import columns, make_pair
from tests.align.test_rounds import CALLS
from tests.journal.calls import record

pytestmark = [
    pytest.mark.mini,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

_COMPUTES = 0.02
"""Of the busiest thread's processor time: one that was only begun has a few thousandths, pinned to one core or not."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    journal = open_journal(tmp_path)
    record(journal, CALLS, 3)
    sizes = {"codebooks": 13, "card": 512, "text_card": 640}
    pairs = [
        make_pair(f"pair-{n}", *(columns(75, 3 * n + part, **sizes) for part in range(3)), session=CALLS[n % 8])
        for n in range(16)
    ]
    PairStore(journal).add(pairs)
    journal.engine.dispose()
    return tmp_path


def processor_times(pid: int) -> dict[str, int]:
    """Of each thread that lives: ticks that it has had."""
    times = {}
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
            times[thread.name] = int(fields[11]) + int(fields[12])
    return times


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_compute_as_it_was_told(data: Path, threads: int) -> None:
    """Whatever the environment says. Two are the proof that more than one would be seen here."""
    flags = ["--no-collect", "--no-release", "--priority", "normal", "--threads", str(threads), "--data-dir", str(data)]
    environment = os.environ | {"OMP_NUM_THREADS": str(3 - threads)}
    times: dict[str, int] = {}
    with subprocess.Popen([sys.executable, "-m", "online_align", "once", *flags], env=environment) as learner:
        while learner.poll() is None:
            times |= processor_times(learner.pid)
            time.sleep(0.05)
    assert [each.stage for each in RoundFiles(data / "learner" / "rounds").all()] == [Stage.DONE]
    busiest = max(times.values())
    assert sum(each > _COMPUTES * busiest for each in times.values()) == threads, times
