"""What the machine does meanwhile, by a process of its own: moments in which it stands still, and who else computes.

Started as `python -m benchmarks.machine_watch FILE PID`. On every core a thread above all others sleeps a millisecond
at a time and notes when it is woken late: then the core, and not our own work on it, was held up by its host or by its
kernel. Now and then it does the same small piece of work and notes what that took, to be read beside other moments of
the same run: twice the median is nothing unusual. Beside that it samples who computes: the process PID and its
children, or others. Written when it is told to end (SIGTERM). Linux only.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

__all__ = ["Hiccup", "Others", "Piece", "Sample", "Watched", "main", "others_between"]

_NAP_S: Final = 0.001
_LATE_S: Final = 0.003
"""Above what a timer of a busy kernel is off."""
_NAPS_A_PIECE: Final = 40
_PIECE_FLOATS: Final = 2**18
"""A megabyte is read: more than a core's own cache has room for beside a step."""
_SAMPLE_S: Final = 0.1
_LOOK_S: Final = 1.0
"""Between looks at all processes of the machine."""
_PRIORITY: Final = 50
_SWITCH_S: Final = 0.0002
"""Of this interpreter: a look at all processes must not make hiccups."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PROC: Final = Path("/proc")


Processes = dict[int, tuple[int, str, float]]
"""Parent, name and seconds computed so far, by number."""


class Hiccup(msgspec.Struct, frozen=True, array_like=True):
    """A core was woken late."""

    at: float
    """When it should have been: monotonic seconds."""
    seconds: float
    core: int


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """The same piece of work, done once more."""

    at: float
    """Monotonic seconds when it was done."""
    seconds: float
    core: int


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """Processor time since the sample before, in seconds of all cores together."""

    at: float
    busy_s: float
    stolen_s: float
    """Taken by the host."""
    disk_s: float
    """Idle because of a disk."""


class Others(msgspec.Struct, frozen=True, array_like=True):
    """Processes that are not ours, over the last second."""

    at: float
    seconds: float
    """Of processor time, in all."""
    ours_s: float
    busiest: str


class Watched(msgspec.Struct, kw_only=True):
    """All of it."""

    realtime: bool = True
    """The threads that nap stood above all others; if not, our own work makes hiccups, too."""
    hiccups: list[Hiccup] = []
    pieces: list[Piece] = []
    samples: list[Sample] = []
    others: list[Others] = []


def main(path: Path, root: int) -> None:
    """Watch until told to end."""
    sys.setswitchinterval(_SWITCH_S)
    watched, ended = Watched(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    for core in os.sched_getaffinity(0):
        threading.Thread(target=_nap, args=(core, watched, ended), daemon=True).start()
    before, processes, looked = _cores(), _processes(), time.monotonic()
    while not ended.wait(_SAMPLE_S):
        after, now = _cores(), time.monotonic()
        watched.samples.append(Sample(now, *(b - a for a, b in zip(before, after, strict=True))))
        before = after
        if now - looked >= _LOOK_S:
            found = _processes()
            watched.others.append(others_between(now, processes, found, root))
            processes, looked = found, now
    path.write_bytes(msgspec.json.encode(watched))


def _nap(core: int, watched: Watched, ended: threading.Event) -> None:
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except PermissionError:
        watched.realtime = False
    work, naps = np.ones(_PIECE_FLOATS, np.float32), 0
    while not ended.is_set():
        due = time.monotonic() + _NAP_S
        time.sleep(_NAP_S)
        if (late := time.monotonic() - due) > _LATE_S:
            watched.hiccups.append(Hiccup(due, late, core))
        naps += 1
        if naps % _NAPS_A_PIECE == 0:
            began = time.perf_counter()
            np.dot(work, work)
            watched.pieces.append(Piece(time.monotonic(), time.perf_counter() - began, core))


def _cores() -> tuple[float, float, float]:
    """Seconds since the start of the machine: busy, stolen, waiting for a disk."""
    with (_PROC / "stat").open() as file:
        user, nice, system, _, disk, hard, soft, stolen, *_ = (int(each) for each in file.readline().split()[1:])
    return tuple(each / _TICKS_PER_S for each in (user + nice + system + hard + soft, stolen, disk))  # type: ignore[return-value]


def _processes() -> Processes:
    """All processes: parent, name, seconds computed."""
    found = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                head, _, tail = (folder / "stat").read_text().rpartition(")")
                fields = tail.split()
                found[int(folder.name)] = (
                    int(fields[1]),
                    head.partition("(")[2],
                    (int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
                )
    return found


def others_between(now: float, before: Processes, after: Processes, root: int) -> Others:
    """Whose processor time was spent between two looks: that of `root` and its children, or others'."""
    ours_s, spent = 0.0, {}
    for pid, (_, name, seconds) in after.items():
        done = seconds - before[pid][2] if pid in before else seconds
        if _descends(pid, root, after):
            ours_s += done
        elif done > 0:
            spent[f"{name} {pid}"] = done
    return Others(now, sum(spent.values()), ours_s, max(spent, key=spent.__getitem__, default=""))


def _descends(pid: int, root: int, processes: Processes) -> bool:
    while pid in processes and pid != root:
        pid = processes[pid][0]
    return pid == root


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
