"""How many callers this machine can hold on time: measured before anybody calls, not configured by hope.

This file knows what a step and a caller cost and what was promised; it does arithmetic and loads engines. What it
finds is watched later (`pressure`): other programs come and go.

The promise is that 99 of 100 frames are answered within a frame's time, 80 ms. Two moments are the hardest.
*Everybody at once*: all callers' frames are complete in the same instant; the last is answered when all have been
decoded, stepped together, encoded and sent, one thing after the other. *Just too late*: a frame is complete when a
step has just begun, waits for it to end, and then shares the next with all who have come meanwhile. Neither may take
more than a share of a frame (`share_on`); the rest is for what no measurement at the start can see. Besides, what is
done for callers outside the step must fit into that share of one core, hearing what happens in their calls included:
nobody waits for that, but it must keep up.
"""

import gc
import os
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from server.engine import Engine
from server.errors import SlotRoomError
from server.rehearsal import CallerCost

__all__ = ["Capacity", "Limits", "StepCost", "callers_on_time", "fit_steps", "load_wide", "measure_steps", "share_on"]

_SHARE_ON_A_GPU: Final = 0.7
_SHARE_ON_A_CPU: Final = 0.5
"""A CPU's caches and memory are shared, often with guests that nobody here can see: at times all work takes twice as
long (docs/decisions/0088-room-for-slower-moments.md)."""
_ROUNDS: Final = 7
_SLOW_STEP_S: Final = 0.02
_ROUNDS_WHEN_SLOW: Final = 3
_RELOADS: Final = 2
_NARROWER: Final = 0.8


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots an operator wants: exactly `slots`, or with None what the machine holds, at most `ceiling`."""

    slots: int | None
    ceiling: int


class StepCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step with `rows` callers in it: `fixed_s + rows * row_s`."""

    fixed_s: float
    row_s: float

    def __call__(self, rows: float) -> float:
        """Seconds of a step with so many rows; a mean may be broken."""
        return self.fixed_s + rows * self.row_s


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what follows."""

    callers: int
    """Admitted at most."""
    measured: int
    """Held on time, by the measurement: 0 when not even one is, and never more than `slots`."""
    slots: int
    """Of the engine."""
    step_s: dict[int, float]
    """Seconds of a step, by how many callers were in it."""
    caller: CallerCost
    share: float
    """Of a frame, that the hardest moments may take."""


def load_wide(load: Callable[[int], Engine], limits: Limits, *, frame_s: float) -> tuple[Engine, dict[int, float]]:
    """Load an engine, warm, and time its steps.

    Where the operator leaves the width open, it is the ceiling, or what a GPU's memory holds, which costs nothing with
    an engine whose step follows its active rows. With one whose step follows its slots, even one caller would be late:
    it is loaded narrower.
    """
    slots, reloads = limits.slots or limits.ceiling, 0
    while True:
        engine = _load_what_fits(load, slots) if limits.slots is None else load(slots)
        engine.warm_up()
        alone_s = engine.measure_step(1, _ROUNDS_WHEN_SLOW)
        aim_s = share_on(engine.device) * frame_s / 2
        if limits.slots or alone_s <= aim_s or slots == 1 or reloads == _RELOADS:
            return engine, measure_steps(engine, alone_s)
        slots, reloads = max(1, int(_NARROWER * slots * aim_s / alone_s)), reloads + 1
        del engine
        gc.collect()


def _load_what_fits(load: Callable[[int], Engine], slots: int) -> Engine:
    """As many slots as asked for, or as many as there is memory for. Raises `SlotRoomError` when not one fits."""
    try:
        return load(slots)
    except SlotRoomError as problem:
        if not problem.fits:
            raise
        fits = problem.fits
    gc.collect()  # the model of the first attempt
    return load(fits)


def measure_steps(engine: Engine, alone_s: float) -> dict[int, float]:
    """Time steps of a few widths. Seconds by rows, ascending; `alone_s` is that of one row as far as known."""
    rounds = _ROUNDS if alone_s < _SLOW_STEP_S else _ROUNDS_WHEN_SLOW
    widths = sorted({1, max(1, engine.slots // 8), max(1, engine.slots // 2), engine.slots})
    return {rows: engine.measure_step(rows, rounds) for rows in widths}


def fit_steps(step_s: dict[int, float]) -> StepCost:
    """Draw a line through the measured steps, by least squares of the relative errors, with nothing negative."""
    rows, seconds = np.array(list(step_s)), np.array(list(step_s.values()))
    if len(step_s) == 1:
        return StepCost(fixed_s=float(seconds[0]), row_s=0.0)
    weights = 1 / seconds
    fixed_s, row_s = np.linalg.lstsq(np.stack([weights, rows * weights], axis=1), np.ones(len(rows)))[0]
    if row_s < 0:
        return StepCost(fixed_s=float(seconds.max()), row_s=0.0)
    if fixed_s < 0:
        return StepCost(fixed_s=0.0, row_s=float((seconds / rows).max()))
    return StepCost(fixed_s=float(fixed_s), row_s=float(row_s))


def share_on(device: str) -> float:
    """Share of a frame that the hardest moments may take with an engine on `device`, "cpu" or "cuda:0"."""
    return _SHARE_ON_A_CPU if device == "cpu" else _SHARE_ON_A_GPU


def callers_on_time(
    step: StepCost, caller: CallerCost, *, share: float, frame_s: float, at_most: int, cores: int | None = None
) -> int:
    """Give the largest number of callers, 0 to `at_most`, for whom the hardest moments stay within `share` of a frame.

    `cores` are those that this process may use, by default as the system tells; with one, all work shares it.
    """
    alone = (cores or _cores()) == 1

    def hardest_s(callers: int) -> float:
        beside_s = caller.loop_s + caller.encode_s
        at_once_s = step(callers) + callers * beside_s
        kept_up_s = callers * (beside_s + caller.listen_s) + (step(callers) if alone else 0.0)
        free_s = frame_s - callers * step.row_s
        if free_s <= 0:
            return max(at_once_s, kept_up_s)
        others = min(float(callers - 1), max(1.0, callers * step.fixed_s / free_s))
        just_too_late_s = 2 * step(others) + others * beside_s if callers > 1 else 0.0
        return max(at_once_s, just_too_late_s, kept_up_s)

    fitting = (callers for callers in range(at_most, 0, -1) if hardest_s(callers) <= share * frame_s)
    return next(fitting, 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
