"""What every test needs: one thread for torch, and no trace of one test in the next."""

import os
import sys
from collections.abc import Iterator

import pytest

# Servers, engines and clients of one test share the machine's few cores. Two OpenMP threads that meet other work wait
# at every barrier, which makes single steps ten times longer (docs/log.md). Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads this once, when the first kernel is imported, which a test of something else may do.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _denormals_as_they_were() -> Iterator[None]:
    """The engine flushes denormals in the thread that steps it; hypothesis cannot draw floats in such a thread."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _place_on_the_processor_as_it_was() -> Iterator[None]:
    """What computes beside a server steps back for good, which a process of tests must not: later ones would starve."""
    before = _place()
    yield
    assert _place() == before, "a test made this process step back; give the command --priority normal"


def _place() -> tuple[int, ...]:
    if not hasattr(os, "sched_getscheduler"):
        return ()
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
