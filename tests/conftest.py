"""What every test needs: one thread for torch, examples that may take their time, no trace of one test in the next."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Servers, engines and clients of one test share the machine's few cores. Two OpenMP threads that meet other work wait
# at every barrier, which makes single steps ten times longer (docs/log.md). Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads this once, when the first kernel is imported, which a test of something else may do.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Of two busy cores a test may have to wait for its turn, in the middle of an example. A change is judged by the same
# examples each time (`.ci/run`), a desk draws new ones.
settings.register_profile("duologue", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("duologue")


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
