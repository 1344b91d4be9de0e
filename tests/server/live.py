"""A real server on a real socket inside a test's event loop, and proof that it left nothing behind."""

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
from aiohttp import web_app

from server.app import Server
from server.config import ServerConfig
from server.engine import Engine
from server.journal import JournalWriter
from server.scheduler import Health
from server.session import Session

Loaded = type[Engine]

_PATIENT = (JournalWriter.__init__.__kwdefaults__, {"most_waiting": 20_000})
"""Calls of tests may be a hundred times as fast as life, and the disk is not: it may fall behind as long as there."""


async def until(reached: Callable[[], bool]) -> None:
    """Look again and again: for things that tell nobody when they change. The test's timeout is the limit."""
    while not reached():  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.01)


class LiveServer:
    """What a test may ask of a running server. `server` is for looking inside."""

    def __init__(self, server: Server, url: str, running: asyncio.Task[bool]) -> None:
        self.server = server
        self.url = url
        self.running = running

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as client, client.get(self.url + path) as response:
            return response.status, await response.text()

    def count(self, name: str, **labels: str) -> float:
        """Read a sample of the server's metrics."""
        value = self.server.metrics.registry.get_sample_value(name, labels)
        assert value is not None, f"no such metric: {name} {labels}"
        return value

    @property
    def open_slots(self) -> tuple[int, ...]:
        return self.server.scheduler._engine.open_slots

    async def empty(self) -> None:
        """Wait until nobody is left, in the desk and in the engine."""
        desk = self.server.desk
        await until(lambda: not (desk.busy or desk.parked or desk._present or self.open_slots))


@asynccontextmanager
async def serving(
    checkpoint: Path,
    *,
    slots: int | str = 2,
    engine: Loaded = Engine,
    ready: bool = True,
    faults: bool = False,
    **settings: Any,
) -> AsyncIterator[LiveServer]:
    """Serve until the block ends, then check that tasks, threads, slots and sessions are gone.

    No lost call is kept unless `resume_grace_s` says so. With `faults`, sessions may be left in memory: the log of a
    failure holds the frames it happened in.
    """
    defaults: dict[str, Any] = {"port": 0, "slots": slots, "max_speed": 1000.0, "drain_s": 5.0, "resume_grace_s": 0.0}
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    config = ServerConfig(**(defaults | settings))
    server = Server(config, lambda width: engine.load(checkpoint, slots=width, device="cpu"))
    address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    with mock.patch.object(gc, "freeze", wraps=gc.freeze) as freeze, mock.patch.dict(*_PATIENT):
        running = asyncio.create_task(server.run(lambda host, port: address.set_result((host, port))))
        host, port = await address
        live = LiveServer(server, f"http://{host}:{port}", running)
        try:
            if ready:
                await until(lambda: server.scheduler.health is not Health.LOADING)
            yield live
        finally:
            server.end()
            await running
    if freeze.call_count > 1 or not ready:
        gc.unfreeze()  # calls may have been there when it froze, and are to be counted
    await _nothing_left(server, tasks, threads, faults=faults)
    _thaw_now_and_then()


async def _nothing_left(
    server: Server, tasks: set[asyncio.Task[Any]], threads: set[threading.Thread], *, faults: bool
) -> None:
    web_app._cached_build_middleware.cache_clear()  # aiohttp holds every server that had a middleware, for good
    await asyncio.sleep(0.02)  # aiohttp's own transports close a turn of the loop later
    left = {task for task in asyncio.all_tasks() - tasks - {asyncio.current_task()} if not task.done()}
    assert not left, f"tasks left: {left}"
    engine_threads = [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("duologue")]
    for thread in engine_threads:
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive(), f"thread left: {thread.name}"
    assert server.desk.busy == server.desk.waiting == server.desk.parked == 0
    assert not server.desk.views()
    if server.scheduler.health is Health.READY:
        assert not server.scheduler._engine.open_slots
        if faults:
            return
        assert await asyncio.to_thread(_count_in_memory, Session) == 0, "sessions left in memory"


_served = itertools.count(1)
_THAW_EVERY = 8


def _thaw_now_and_then() -> None:
    """A server freezes what is in memory for good. What is frozen is in no collection, which saves each of them 0.2 s.

    What is left of a few servers does no harm; of hundreds it would be much.
    """
    if next(_served) % _THAW_EVERY == 0:
        gc.unfreeze()


def _count_in_memory(kind: type) -> int:
    """Those made since the server froze what there was before it."""
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())
