"""The server under a recorder, and the machine under a watch, for the time of a run of `benchmarks.swap`."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.machine_watch import Watched
from benchmarks.servers import Running, our_server
from benchmarks.swap_server import Recording

__all__ = ["read_recordings", "recorded_server"]

_SLOTS: Final = 64
_END_S: Final = 10.0
_ROOT: Final = Path(__file__).parents[1]
_STEPS: Final = "steps.json"
_MACHINE: Final = "machine.json"


@contextmanager
def recorded_server(checkpoint: str, place: Path, flags: Sequence[str]) -> Iterator[Running]:
    """Serve, and leave in `place` what server and machine did meanwhile."""
    program = ("benchmarks.swap_server", str(place / _STEPS))
    with _watched(place / _MACHINE), our_server(checkpoint, slots=_SLOTS, flags=flags, program=program) as running:
        yield running


@contextmanager
def _watched(path: Path) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    command = [sys.executable, "-m", "benchmarks.machine_watch", str(path), str(os.getpid())]
    with subprocess.Popen(command, cwd=_ROOT) as watching:
        try:
            yield
        finally:
            watching.terminate()
            watching.wait(_END_S)


def read_recordings(place: Path) -> tuple[Recording, Watched]:
    """What was left there. Where the machine cannot be watched (it is not Linux), that part is empty."""
    steps, machine = place / _STEPS, place / _MACHINE
    recording = msgspec.json.decode(steps.read_bytes(), type=Recording)
    watched = msgspec.json.decode(machine.read_bytes(), type=Watched) if machine.exists() else Watched()
    return recording, watched
