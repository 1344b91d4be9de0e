"""Fixtures of the server's tests: a checkpoint, and a guard over the event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.engine import Engine
from tests.server.guard import LoopGuard
from tests.server.live import LiveServer, serving
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint at 16 kHz."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_24k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint at Moshi's own rate."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny24"), sample_rate=24000)


@pytest.fixture
async def shared(tiny: Path) -> AsyncIterator[LiveServer]:
    """A server for tests that only ask it something."""
    async with serving(tiny, slots=1) as live:
        yield live


@pytest.fixture(autouse=True)
def loop_guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopGuard]:
    """Fail every test in which something blocked the event loop."""
    guard = LoopGuard()
    monkeypatch.setattr(asyncio.Handle, "_run", guard.watch(asyncio.Handle._run))
    monkeypatch.setattr(time, "sleep", guard.forbid("time.sleep", time.sleep))
    for name in ("load", "warm_up", "open", "close", "step"):
        method: Any = getattr(Engine, name)
        if name == "load":
            monkeypatch.setattr(Engine, name, classmethod(guard.forbid("Engine.load", method.__func__)))
        else:
            monkeypatch.setattr(Engine, name, guard.forbid(f"Engine.{name}", method))
    with guard.knowing_collections():
        yield guard
    assert not guard.faults, guard.faults
