"""What `benchmarks.swap` has measured so far: a thousand swaps take longer than a machine may be kept for oneself.

So runs add up in one file, and rows are of their sum. This file owns that file and the rows; it knows no server.
"""

import statistics
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.machine_watch import Watched
from benchmarks.report import Row, compare
from benchmarks.swap_bursts import QUIET_CORES, Burst, Window, others_in, slowed_in
from server.durable import write_durably

__all__ = ["Tally", "Window", "read_tally", "rows_of", "write_tally"]

_GOAL_ROLLBACK_MS: Final = 1000.0


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
    places: list[int] = []
    """In each run."""
    bursts: list[Burst] = []
    """Of late frames, with what stood beside them; in whole runs, their beginning and end included."""
    step_cost_ratios: list[float] = []
    """What a step cost in each run, by what the server had measured beforehand."""
    hiccup_ms_max: float = 0.0
    """The longest time for which a core stood still."""

    def note_machine(self, watched: Watched, since: int) -> None:
        """Note what the machine did in a run that is over, whose windows are those from number `since` on."""
        self.windows[since:] = [
            msgspec.structs.replace(
                window, others_cores=others_in(window, watched), slowed_p99=slowed_in(window, watched)
            )
            for window in self.windows[since:]
        ]
        self.hiccup_ms_max = max([self.hiccup_ms_max, *(1000 * each.seconds for each in watched.hiccups)])

    @property
    def swaps(self) -> int:
        """So far."""
        return sum(window.swaps for window in self.windows)

    def counts(self, *, swapped: bool, quiet: bool = False) -> tuple[int, int]:
        """Frames that came late and all that were answered, in windows with or without swaps.

        With `quiet`, in those in which nobody else computed."""
        windows = [window for window in self.windows if bool(window.swaps) == swapped and (window.quiet or not quiet)]
        return sum(window.late for window in windows), sum(window.answered for window in windows)

    def caused(self, *, quiet: bool = False) -> float:
        """Late frames above those that windows without swaps would have had in the same number of frames."""
        (late, answered), (others, among) = (self.counts(swapped=swapped, quiet=quiet) for swapped in (True, False))
        return late - others * answered / max(1, among)

    def sentence(self, *, quiet: bool = False) -> str:
        """How it stands."""
        with_swaps, without = ("{} of {}".format(*self.counts(swapped=each, quiet=quiet)) for each in (True, False))
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
    quiet = [window for window in tally.windows if window.quiet]
    disturbed = sum(burst.disturbed for burst in tally.bursts)
    callers = " and ".join(str(each) for each in sorted(set(tally.callers)))
    runs = f"{tally.runs} run{'s' if tally.runs > 1 else ''}"
    trust = f"; in {tally.untrusted_runs} of them the load generator itself was late" if tally.untrusted_runs else ""
    return [
        compare("swaps", tally.swaps, "swaps", better="higher", remark=f"distinct files, {callers} callers, {runs}"),
        compare(
            "late_frames_caused",
            tally.caused(),
            "frames",
            better="lower",
            goal=0,
            remark=tally.sentence() + trust,
        ),
        compare(
            "late_frames_caused_undisturbed",
            tally.caused(quiet=True) if quiet else None,
            "frames",
            better="lower",
            remark=f"{len(quiet)} of {len(tally.windows)} windows, {sum(each.swaps for each in quiet)} swaps, in which "
            f"others had no more than {QUIET_CORES} cores; {tally.sentence(quiet=True)}",
        ),
        compare(
            "bursts_of_late_frames",
            len(tally.bursts),
            "bursts",
            better="lower",
            remark=f"{disturbed} of them while others computed or the machine stood still; the file describes each",
        ),
        compare(
            "step_cost_against_measured",
            _median(tally.step_cost_ratios),
            "times",
            better="lower",
            remark="under load, by what the server measured before anybody called",
        ),
        compare("machine_stood_still_ms_max", tally.hiccup_ms_max, "ms", better="lower", remark="a core, not our work"),
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
