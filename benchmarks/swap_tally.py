"""What `benchmarks.swap` has measured so far: a thousand swaps take longer than a machine may be kept for oneself.

So runs add up in one file, and rows are of their sum. This file owns that file and the rows; it knows no server.
"""

import statistics
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.report import Row, compare
from server.durable import write_durably

__all__ = ["Tally", "Window", "read_tally", "rows_of", "write_tally"]

_GOAL_ROLLBACK_MS: Final = 1000.0


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time, with or without swaps, by the server's own clock."""

    swaps: int
    seconds: float
    answered: int
    late: int


class Tally(msgspec.Struct, kw_only=True):
    """All runs into one file."""

    rank: int
    """Of the adapters."""
    runs: int = 0
    callers: list[int] = []
    """In each run."""
    windows: list[Window] = []
    make_live_ms: list[float] = []
    flip_ms_max: float = 0.0
    calls_moved: int = 0
    frames_lost: int = 0
    rollback_ms: list[float] = []
    """By HTTP."""
    rollback_by_registry_ms: list[float] = []
    untrusted_runs: int = 0
    """In which the load generator itself was late."""

    @property
    def swaps(self) -> int:
        """So far."""
        return sum(window.swaps for window in self.windows)

    def counts(self, *, swapped: bool) -> tuple[int, int]:
        """Frames that came late and all that were answered, in windows with or without swaps."""
        windows = [window for window in self.windows if bool(window.swaps) == swapped]
        return sum(window.late for window in windows), sum(window.answered for window in windows)

    def sentence(self) -> str:
        """How it stands."""
        with_swaps, without = ("{} of {}".format(*self.counts(swapped=swapped)) for swapped in (True, False))
        return f"late: with {with_swaps}, without {without}"


def read_tally(path: Path | None, *, rank: int) -> Tally:
    """What earlier runs left. Raises `ValueError` when that was measured with other adapters, or cannot be read."""
    if path is None or not path.exists():
        return Tally(rank=rank)
    try:
        tally = msgspec.json.decode(path.read_bytes(), type=Tally)
    except msgspec.DecodeError as problem:
        raise ValueError(f"got {path} that is no earlier result ({problem}); expected one; name another file") from None
    if tally.rank != rank:
        raise ValueError(f"got rank {rank}; expected {tally.rank}, as in {path}; name another file")
    return tally


def write_tally(path: Path | None, tally: Tally) -> None:
    """Keep it, if there is a place for it."""
    if path is not None:
        write_durably(path, msgspec.json.format(msgspec.json.encode(tally), indent=1))


def rows_of(tally: Tally) -> list[Row]:
    """The figures of all runs together."""
    (late, answered), (others, among) = tally.counts(swapped=True), tally.counts(swapped=False)
    expected = others * answered / max(1, among)
    callers = " and ".join(str(each) for each in sorted(set(tally.callers)))
    runs = f"{tally.runs} run{'s' if tally.runs > 1 else ''}"
    trust = f"; in {tally.untrusted_runs} of them the load generator itself was late" if tally.untrusted_runs else ""
    return [
        compare("swaps", tally.swaps, "swaps", better="higher", remark=f"distinct files, {callers} callers, {runs}"),
        compare(
            "late_frames_caused",
            late - expected,
            "frames",
            better="lower",
            goal=0,
            remark=tally.sentence() + trust,
        ),
        compare("flip_ms_max", tally.flip_ms_max, "ms", better="lower", remark="the tick is held up"),
        compare("calls_moved", tally.calls_moved, "moves", better="higher", remark="calls that changed in silence"),
        compare("make_live_ms_p50", _median(tally.make_live_ms), "ms", better="lower"),
        compare("frames_lost", tally.frames_lost, "frames", better="lower", goal=0),
        compare(
            "rollback_ms_max",
            max(tally.rollback_ms, default=None),
            "ms",
            better="lower",
            goal=_GOAL_ROLLBACK_MS,
            remark="by HTTP",
        ),
        compare(
            "rollback_by_registry_ms_max",
            max(tally.rollback_by_registry_ms, default=None),
            "ms",
            better="lower",
            goal=_GOAL_ROLLBACK_MS,
            remark="as the learner or the command line does it",
        ),
    ]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
