"""How a learner ends when it is told to: at once, but for a step of training, which is made and saved first.

SIGTERM and SIGINT raise `Stopped` wherever the main thread is: what a learner writes is whole or not there, so it may
end anywhere. It knows nothing of rounds.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stop", "Stopped"]


class Stopped(BaseException):
    """The process was told to end. No `Exception`: nobody who handles errors may take it for one."""


class Stop:
    """Whether this process was told to end."""

    def __init__(self) -> None:
        self.asked = False
        self._held = 0

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """While the block lasts SIGTERM and SIGINT stop this process. In the main thread alone."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    @contextlib.contextmanager
    def after(self) -> Iterator[None]:
        """Let the block come to its end first. Raises `Stopped` then."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self.asked and not self._held:
            raise Stopped

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if not self._held:
            raise Stopped
