"""The clock that calls end by, moved by hand: what is not sent for a while depends on no machine's speed."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.server.live import LiveServer


class Clock:
    """Stands still until it is told that time has passed."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def pass_by(self, live: LiveServer, seconds: float) -> None:
        """Let every call look at once whether it must end. Those that must have begun to."""
        self.now += seconds
        for call in live.server.desk._calls:
            call.session.endings._changed.set()
        for _ in range(5):
            await asyncio.sleep(0)


def endings_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Make this the clock of `server.endings`."""
    clock = Clock()
    monkeypatch.setattr("server.endings.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock
