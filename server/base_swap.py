"""Another base model, put in while calls go on: new calls get it, those under way end with the one they began with.

`POST /api/base` loads it beside the old one, warms it up, reads the adapters that are live for it, and only then gives
it new calls; when anything is wrong with it nothing has changed. The old engine's memory is given back when its last
call is over. This file owns the order of that; engines in service are `generations`' business.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from server.adapters import Adapters, Prepared
from server.engine import Engine
from server.errors import BaseSwapError, DuologueError, ServerFailedError
from server.generations import checked
from server.scheduler import Health, Scheduler
from server.session import ModelInfo

__all__ = ["BaseSwap", "LoadBase"]

log = logging.getLogger(__name__)

_OBEY_S: Final = 10.0

LoadBase = Callable[[str, int], Engine]
"""Makes an engine of a checkpoint, with so many slots."""


class _Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    checkpoint: str
    """`mini`, a folder, or `hf:owner/name`."""


class BaseSwap:
    """The address `/api/base`. At most one is loaded at a time, and at most two engines are in service.

    `on_new` is told in the event loop which checkpoint has the new calls.
    """

    def __init__(
        self,
        *,
        load: LoadBase | None,
        scheduler: Scheduler,
        adapters: Adapters,
        on_new: Callable[[str], None] = lambda _checkpoint: None,
    ) -> None:
        self._load = load
        self._on_new = on_new
        self._scheduler = scheduler
        self._adapters = adapters
        self._loading = ""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Make it known."""
        router.add_get("/api/base", self._show)
        router.add_post("/api/base", self._change)

    async def swap(self, checkpoint: str) -> ModelInfo:
        """Put a base model in. Returns when it has new calls. Raises `DuologueError`; then nothing has changed."""
        load, serving = self._check(checkpoint)
        self._loading = checkpoint
        try:
            engine, prepared = await asyncio.to_thread(self._make_ready, load, checkpoint, serving)
            model = await self._put_in(checkpoint, engine, prepared)
            self._on_new(checkpoint)
            await asyncio.to_thread(self._adapters.follow, prepared)
        finally:
            self._loading = ""
        log.info("new calls have %s; those with %s go on to their end", model.checkpoint, serving.checkpoint)
        return model

    async def _put_in(self, checkpoint: str, engine: Engine, prepared: Prepared) -> ModelInfo:
        """Have the tick thread take it. When that does not come to it in time, it never will."""
        renewed = self._scheduler.renew(engine, prepared.plan)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(renewed)), _OBEY_S)
        except TimeoutError:
            if not renewed.cancel():
                return await asyncio.wrap_future(renewed)
        await asyncio.to_thread(prepared.shelf.stop)
        raise BaseSwapError(
            checkpoint,
            got=f"a step that has not ended for {_OBEY_S:g} s",
            expected="a server that answers; look at duologue_step_age_seconds, and ask again",
        )

    def _check(self, checkpoint: str) -> tuple[LoadBase, ModelInfo]:
        serving, older = self._scheduler.model, self._scheduler.older_models
        if self._scheduler.health is not Health.READY or serving is None:
            raise ServerFailedError
        if self._load is None:
            raise BaseSwapError(checkpoint, got="a server made with one engine", expected="one that can load another")
        if self._loading:
            raise BaseSwapError(checkpoint, got=f"{self._loading}, which is being loaded", expected="one at a time")
        if older:
            names = ", ".join(model.name for model in older)
            raise BaseSwapError(checkpoint, got=f"calls with {names} that go on", expected="at most two at once")
        return self._load, serving

    def _make_ready(self, load: LoadBase, checkpoint: str, serving: ModelInfo) -> tuple[Engine, Prepared]:
        """Load and warm up, beside the tick. The garbage collector rests: a round of it would hold up the tick."""
        gc.disable()
        try:
            engine = checked(load(checkpoint, serving.slots))
            _check_fits(checkpoint, engine, serving)
            engine.warm_up()
            prepared = self._adapters.prepare(engine)
            gc.freeze()
        except DuologueError:
            raise
        except Exception as problem:
            log.exception("%s could not be made ready", checkpoint)
            raise BaseSwapError(
                checkpoint,
                got=f"{type(problem).__name__} while it was made ready: {problem}",
                expected="a model that fits beside the one that serves",
            ) from problem
        finally:
            gc.enable()
        return engine, prepared

    async def _show(self, _request: web.Request) -> web.Response:
        return _json(200, self._state())

    async def _change(self, request: web.Request) -> web.Response:
        """To the end, even if who asked does not wait for it."""
        try:
            asked = msgspec.json.decode(await request.read(), type=_Asked)
        except msgspec.DecodeError as problem:
            sentence = f'got a body that cannot be read ({problem}); expected {{"checkpoint": "mini"}}, or a folder\n'
            return web.Response(status=400, text=sentence)
        try:
            await asyncio.shield(self.swap(asked.checkpoint))
        except BaseSwapError as problem:
            return web.Response(status=409, text=f"{problem}\n")
        except DuologueError as problem:
            return web.Response(status=422, text=f"{problem}\n")
        return _json(200, self._state())

    def _state(self) -> dict[str, Any]:
        model = self._scheduler.model
        return {
            "serving": model.name if model is not None else None,
            "loading": self._loading or None,
            "finishing": [older.name for older in self._scheduler.older_models],
        }


def _check_fits(checkpoint: str, engine: Engine, serving: ModelInfo) -> None:
    """What hears the callers is made for one rate. Raises `BaseSwapError`."""
    news = (engine.sample_rate, engine.frame_size)
    olds = (serving.sample_rate, serving.frame_size)
    if news != olds:
        raise BaseSwapError(
            checkpoint,
            got=f"{news[1]} samples a frame at {news[0]} Hz",
            expected=f"{olds[1]} at {olds[0]} Hz, as the one that serves; restart the server for another",
        )


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
