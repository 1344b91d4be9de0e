"""When a call must end of itself: it has lasted too long, its caller sends nothing, or the model failed for it.

It knows a clock, the monotonic one, and no sockets. Lives on the event loop.
"""

import asyncio
import contextlib
import time

from server.errors import FaultError, IdleError, TooLongError

__all__ = ["Endings"]


class Endings:
    """The reasons to end one call. Neither time runs before `start`."""

    def __init__(self, *, max_session_s: float, idle_s: float) -> None:
        self._max_session_s = max_session_s
        self._idle_s = idle_s
        self._started_at: float | None = None
        self._heard_at = 0.0
        self._failed = False
        self._changed = asyncio.Event()

    @property
    def age_s(self) -> float:
        """Seconds since `start`; 0 before."""
        return 0.0 if self._started_at is None else time.monotonic() - self._started_at

    def start(self) -> None:
        """Let the times run."""
        self._started_at = self._heard_at = time.monotonic()
        self._changed.set()

    def heard(self) -> float:
        """Note that the caller has sent sound, be it silence, or is there again. Returns seconds since the last time.

        It is 0 before `start`.
        """
        before, self._heard_at = self._heard_at, time.monotonic()
        return 0.0 if self._started_at is None else self._heard_at - before

    def fail(self) -> None:
        """End the call: the model raised for it."""
        self._failed = True
        self._changed.set()

    async def watch(self) -> None:
        """Wait until the call must end. Raises `FaultError`, `TooLongError` or `IdleError`."""
        while True:
            self._check()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s()):
                    await self._changed.wait()

    def _check(self) -> None:
        if self._failed:
            raise FaultError
        if self.age_s >= self._max_session_s:
            raise TooLongError(self._max_session_s)
        if self._started_at is not None and time.monotonic() - self._heard_at >= self._idle_s:
            raise IdleError(self._idle_s)

    def _patience_s(self) -> float | None:
        """Seconds until `_check` may raise of its own accord; None for not before something happens."""
        if self._started_at is None:
            return None
        ends_at = min(self._started_at + self._max_session_s, self._heard_at + self._idle_s)
        return max(0.0, ends_at - time.monotonic())
