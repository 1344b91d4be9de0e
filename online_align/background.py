"""A place on the processor behind the server, for what computes beside it: few threads, and only when others rest."""

import argparse
import contextlib
import os
from typing import Final

from online_align.on_journal import at_least_one

__all__ = ["add_background", "step_back"]

_NICE: Final = 19


def add_background(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--priority`, for `step_back`."""
    parser.add_argument("--threads", type=at_least_one, default=1, help="processor threads (default: %(default)s)")
    places = ("idle", "low", "normal")
    parser.add_argument("--priority", choices=places, default="idle", help="on the processor (default: %(default)s)")


def step_back(threads: int, priority: str) -> None:
    """Take that place for the whole process, for good. To be called before anything imports torch.

    `idle` runs when nobody else wants to, `low` gets little while others do. What the system does not have is left out.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if priority != "normal":
        with contextlib.suppress(AttributeError, OSError):
            os.nice(_NICE)
    if priority == "idle":
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    import torch  # noqa: PLC0415 - after the number of threads is set

    torch.set_num_threads(threads)
