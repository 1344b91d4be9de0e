"""Whether the server keeps up: nobody new is admitted while it does not. Lives on the event loop.

What a machine holds is measured at the start (`capacity`), but other programs come and go and calls grow longer.
So the callers' own frames are watched, and the event loop's clock. This file knows counts and seconds, no callers.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

__all__ = ["LoadGuard"]

log = logging.getLogger(__name__)

_INTERVAL_S: Final = 1.0
_LATE_SHARE: Final = 0.02
"""A second in which more of the frames were late is a late second. The promise is 1 %, over longer times."""
_LONGEST_S: Final = 0.08
_CLOSE_AFTER: Final = 3
_REOPEN_AFTER: Final = 5


class LoadGuard:
    """Closes admission after three late seconds in a row, and opens it again after five good ones.

    `on_change` is told whether admission is open. `step_age_s` says how long the engine's present step has taken: a
    second in which nothing was answered is good only if nothing was being computed.
    """

    def __init__(self, on_change: Callable[[bool], None], step_age_s: Callable[[], float] = lambda: 0.0) -> None:
        self.open = True
        self._on_change = on_change
        self._step_age_s = step_age_s
        self._answers = 0
        self._late = 0
        self._run_length = 0

    def note(self, answers: int, late: int) -> None:
        """Count what a step answered, and how much of it the server itself made late."""
        self._answers += answers
        self._late += late

    def judge(self, lag_s: float) -> None:
        """End a second in which the event loop was behind its clock by `lag_s`."""
        stuck_s = max(lag_s, self._step_age_s())
        late = self._late > _LATE_SHARE * self._answers or stuck_s > _LONGEST_S
        self._run_length = self._run_length + 1 if late == self.open else 0
        if self._run_length >= (_CLOSE_AFTER if self.open else _REOPEN_AFTER):
            self._turn()
        self._answers = self._late = 0

    async def run(self) -> None:
        """Judge every second, for ever."""
        while True:
            due_at = time.monotonic() + _INTERVAL_S
            await asyncio.sleep(_INTERVAL_S)
            self.judge(time.monotonic() - due_at)

    def _turn(self) -> None:
        self.open, self._run_length = not self.open, 0
        if self.open:
            log.info("on time for %d s: callers are admitted again", _REOPEN_AFTER)
        else:
            log.warning(
                "late for %d s (%d of the last second's %d frames): nobody new is admitted",
                _CLOSE_AFTER,
                self._late,
                self._answers,
            )
        self._on_change(self.open)
