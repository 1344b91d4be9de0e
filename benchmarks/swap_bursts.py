"""Late frames and what stood beside them: the step, the collector, the machine. For `benchmarks.swap`.

Late frames come in bursts. For each, the server's own recording (`swap_server`) and the machine's (`machine_watch`) are
looked at from a little before its first frame was due until its last one was answered. Nothing is subtracted: a reader
sees how long the machine stood still meanwhile, and may judge.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec
import numpy as np

from benchmarks.machine_watch import Piece, Watched
from benchmarks.swap_server import LateNote, Recording

__all__ = ["QUIET_CORES", "Burst", "During", "Window", "find_bursts", "others_in", "slowed_in", "step_cost_ratio"]

QUIET_CORES: Final = 0.05
"""What the system itself does on a machine on which nobody else computes, in its worst second."""
_LONG_HICCUP_MS: Final = 20.0
_APART_S: Final = 0.5
_BEFORE_S: Final = 0.02
"""Of a burst: what made its first frame wait began about when that was due."""
_SAMPLE_S: Final = 0.1
_PIECE_S: Final = 0.05
"""Between two pieces of work, at most."""


During = Literal["with swaps", "without swaps", "outside"]
"""A window with or without swaps, or neither: a run's beginning, pauses and end."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time, with or without swaps, by the server's own clock."""

    swaps: int
    seconds: float
    answered: int
    late: int
    began_s: float = 0.0
    """Monotonic."""
    others_cores: float | None = None
    """What other processes had of the cores, in the worst second; None when nobody watched."""
    slowed_p99: float | None = None
    """So many times its median of the whole run did the slowest hundredth of pieces of the same work take."""

    @property
    def quiet(self) -> bool:
        """Nobody else computed meanwhile, as far as somebody watched."""
        return self.others_cores is not None and self.others_cores <= QUIET_CORES


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Late frames that came one soon after the other. Milliseconds are the longest of each kind meanwhile."""

    at_s: float
    """Monotonic: of the machine's clock."""
    during: During
    """Where it began."""
    frames: int
    worst_ms: float
    """From when a frame was due to its answer."""
    waited_ms: float
    """For a step to begin."""
    step_ms: float
    computed_ms: float
    """Of a step, in compiled code."""
    temporal_ms: float = 0.0
    """Of that, by the temporal transformer: most of it is reading keys and values."""
    handed_over_ms: float
    """From the end of a step to the event loop, Opus included."""
    sent_ms: float = 0.0
    """From the end of a late answer's step to its socket."""
    rows: int
    versions: int
    """The most adapters in a step."""
    collector_ms: float
    hiccup_ms: float
    """A core stood still: nothing of ours was run, at whatever priority."""
    slowed: float = 1.0
    """So many times its median of the whole run did the same piece of work take, above everything of ours.

    `Window.slowed_p99` tells what is usual.
    """
    stolen_ms: float
    """Processor time that the host took, in all."""
    others_cores: float
    """What other processes had, of the cores, in that second."""
    busiest_other: str
    swap_ago_s: float | None
    """Since the last request of a swap; None when none came before."""

    @property
    def disturbed(self) -> bool:
        """The machine stood still, or others computed: more than a quiet machine's own housekeeping."""
        return max(self.hiccup_ms, self.stolen_ms) > _LONG_HICCUP_MS or self.others_cores > QUIET_CORES

    def sentence(self) -> str:
        """What a person reads."""
        swap = "no swap before" if self.swap_ago_s is None else f"a swap {self.swap_ago_s:.2f} s before"
        return (
            f"{self.frames} late {self.during}, {swap}, {self.worst_ms:.0f} ms at worst: waited {self.waited_ms:.0f}, "
            f"step {self.step_ms:.0f} (computed {self.computed_ms:.0f}, temporal {self.temporal_ms:.0f}; "
            f"{self.rows} rows, {self.versions} versions), "
            f"handed over {self.handed_over_ms:.0f}, sent {self.sent_ms:.0f}; collector {self.collector_ms:.0f}; "
            f"the machine stood still {self.hiccup_ms:.0f} ms, its host took {self.stolen_ms:.0f} ms, "
            f"a piece of work took {self.slowed:.1f} times its median, "
            f"others had {self.others_cores:.2f} cores"
        )


def find_bursts(
    recording: Recording, watched: Watched, swaps: Sequence[float], windows: Sequence[Window]
) -> list[Burst]:
    """Find all bursts of a run. `swaps` are monotonic seconds of the requests, ascending."""
    return [_describe(late, recording, watched, swaps, windows) for late in _groups(recording.late)]


def step_cost_ratio(recording: Recording, step_ms: Mapping[str, float]) -> float | None:
    """What steps cost under this load, by what the server measured before anybody called, for as many rows.

    `step_ms` are milliseconds by rows, as `/api/info` tells. The last half of the run counts: calls are old then.
    """
    steps = recording.steps[len(recording.steps) // 2 :]
    rows, measured = zip(*sorted((int(rows), spent) for rows, spent in step_ms.items()), strict=True)
    expected_ms = sum(float(np.interp(step.rows, rows, measured)) for step in steps)
    return 1000 * sum(step.computed_s for step in steps) / expected_ms if expected_ms else None


def others_in(window: Window, watched: Watched) -> float | None:
    """Cores that other processes had in a window, in its worst second. None when nobody watched."""
    seconds = [
        each.seconds for each in watched.others if window.began_s <= each.at <= window.began_s + window.seconds + 1
    ]
    return max(seconds, default=None)


def slowed_in(window: Window, watched: Watched) -> float | None:
    """How much slower than in its median the machine was, in the slowest hundredth of a window. None if unwatched."""
    ratios = _ratios(watched.pieces, window.began_s, window.began_s + window.seconds)
    return float(np.percentile(ratios, 99)) if ratios else None


def _groups(late: Iterable[LateNote]) -> Iterator[list[LateNote]]:
    group: list[LateNote] = []
    for each in sorted(late, key=lambda each: each.sent_at):
        if group and each.due_at - group[-1].sent_at > _APART_S:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _describe(
    late: list[LateNote], recording: Recording, watched: Watched, swaps: Sequence[float], windows: Sequence[Window]
) -> Burst:
    began, ended = min(each.due_at for each in late) - _BEFORE_S, max(each.sent_at for each in late)
    steps = [step for step in recording.steps if step.delivered_at >= began and step.due_at <= ended]
    others = max(
        (each for each in watched.others if began <= each.at <= ended + 1.0),
        key=lambda each: each.seconds,
        default=None,
    )
    return Burst(
        at_s=began,
        during=_where(late[0].due_at, windows),
        frames=len(late),
        worst_ms=_longest(each.sent_at - each.due_at for each in late),
        waited_ms=_longest(each.began_at - each.due_at for each in late),
        step_ms=_longest(step.stepped_at - step.began_at for step in steps),
        computed_ms=_longest(step.computed_s for step in steps),
        temporal_ms=_longest(step.temporal_s for step in steps),
        handed_over_ms=_longest(step.delivered_at - step.stepped_at for step in steps),
        sent_ms=_longest(each.sent_at - each.stepped_at for each in late),
        rows=max((step.rows for step in steps), default=0),
        versions=max((step.versions for step in steps), default=0),
        collector_ms=_longest(spent for at, spent in recording.pauses if began <= at + spent and at <= ended),
        hiccup_ms=_longest(
            each.seconds for each in watched.hiccups if began <= each.at + each.seconds and each.at <= ended
        ),
        slowed=_slowed(watched.pieces, began, ended),
        stolen_ms=1000 * sum(each.stolen_s for each in watched.samples if began <= each.at <= ended + _SAMPLE_S),
        others_cores=0.0 if others is None else others.seconds,
        busiest_other="" if others is None else others.busiest,
        swap_ago_s=min((ended - swap for swap in swaps if swap <= ended), default=None),
    )


def _slowed(pieces: Sequence[Piece], began: float, ended: float) -> float:
    """The slowest piece meanwhile, by the median of all on that core; 1 where none was done."""
    return max(_ratios(pieces, began, ended + _PIECE_S), default=1.0)


def _ratios(pieces: Sequence[Piece], began: float, ended: float) -> list[float]:
    """What pieces took, by the median of all on their core."""
    usual = {core: statistics.median(p.seconds for p in pieces if p.core == core) for core in {p.core for p in pieces}}
    return [p.seconds / usual[p.core] for p in pieces if began <= p.at <= ended]


def _longest(seconds: Iterable[float]) -> float:
    return 1000 * max(seconds, default=0.0)


def _where(at: float, windows: Iterable[Window]) -> During:
    for window in windows:
        if window.began_s <= at <= window.began_s + window.seconds:
            return "with swaps" if window.swaps else "without swaps"
    return "outside"
