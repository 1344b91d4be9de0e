"""Routes and lifecycle: what is at which address, and how the server starts, drains and stops.

Nothing here moves audio. `__main__` makes the pieces; tests make them with other settings.
"""

import asyncio
import logging
import platform
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from server.adapter_plan import Plan
from server.adapter_routes import AdapterRoutes
from server.adapters import Adapters, Applied
from server.addresses import Addresses
from server.auth import Auth
from server.base_swap import BaseSwap, LoadBase
from server.calls import CallDesk
from server.capacity import Capacity, Limits
from server.config import ServerConfig
from server.connections import Connections
from server.doors import VISITOR, WHO, Doors
from server.engine import Engine
from server.errors import ConfigError, TooManyCallsError
from server.learner import command_of, learner_of
from server.limits import AddressLimits
from server.listening import Listening
from server.login import Login
from server.metrics import Metrics, Rejection
from server.origins import Origins
from server.pressure import LoadGuard
from server.protocol import WIRE_SAMPLE_RATE_HZ
from server.scheduler import Health, Scheduler
from server.secret import ServerSecret
from server.session import ModelInfo
from server.tls import open_tls
from server.wire import ChatSocket

__all__ = ["Server"]

log = logging.getLogger(__name__)

_SHUTDOWN_S: Final = 3.0
_SILENT_S: Final = 30.0
"""A connection on which nothing is asked for so long is closed."""
_LONGEST_BODY: Final = 65_536
_LINGER_S: Final = 2.0
"""A body nobody wants goes on arriving for so long after the answer."""
_PACKAGES: Final = ("duologue", "moshi", "torch", "sphn", "aiohttp")


class Server:
    """One listening server.

    `load` makes an engine with so many slots, in the engine's own thread, after the port is open; `ceiling` is the
    most that `slots = "auto"` may ask it for. `load_base` makes one of another checkpoint while calls go on. Raises
    `ConfigError` or `TokenError` for doors that may not be opened.
    """

    def __init__(
        self,
        config: ServerConfig,
        load: Callable[[int], Engine],
        *,
        load_base: LoadBase | None = None,
        ceiling: int = 64,
    ) -> None:
        self.metrics = Metrics()
        self.secret = ServerSecret(config.data_dir)
        self.auth = Auth(config, self.secret)
        self.tls = open_tls(config)
        self.limits = AddressLimits(
            max_calls=config.max_calls_per_address,
            bytes_per_s=config.max_bytes_per_s_per_address,
            max_message_bytes=config.max_message_bytes,
        )
        addresses = Addresses(config.trusted_proxies)
        self.connections = Connections(addresses, max_calls=config.max_calls_per_address)
        self._doors = Doors(
            addresses=addresses,
            origins=Origins(config.allow_origin, only_here=self.auth.open_house),
            limits=self.limits,
            auth=self.auth,
            metrics=self.metrics,
        )
        self.guard = LoadGuard(self._on_pressure, lambda: self.scheduler.step_age_s)
        self.listening = Listening(
            data_dir=config.data_dir,
            journal_url=config.journal_url,
            retention_days=config.retention_days,
            metrics=self.metrics,
        )
        self.adapters = Adapters(
            data_dir=config.data_dir,
            journal_url=config.journal_url,
            share=config.canary_share,
            apply=self._apply,
            metrics=self.metrics,
        )
        self.listening.before_keeping = self.secret.keep
        self.scheduler = Scheduler(
            load=load,
            limits=Limits(slots=None if config.slots == "auto" else config.slots, ceiling=ceiling),
            metrics=self.metrics,
            listening=self.listening,
            adapters=self.adapters,
            swap_live=config.swap_live,
            on_health=self._on_health,
            on_answers=self.guard.note,
        )
        self.learner = learner_of(config)
        self.base = BaseSwap(
            load=load_base,
            scheduler=self.scheduler,
            adapters=self.adapters,
            on_new=lambda checkpoint: self.learner.become(command_of(config, checkpoint)),
        )
        self.desk = CallDesk(
            config=config, metrics=self.metrics, scheduler=self.scheduler, may_call=self.auth.may_still_call
        )
        self._config = config
        self._versions = {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()}
        self.metrics.set_version(self._versions["duologue"])
        self._end = asyncio.Event()

    def application(self) -> web.Application:
        """Make the aiohttp application with all routes. The engine's thread lives as long as it runs."""
        app = web.Application(middlewares=[self._doors.admit], client_max_size=_LONGEST_BODY)
        app.cleanup_ctx.append(self._engine_thread)
        Login(self.auth, holds_s=self._config.login_s).add_routes(app.router)
        app.router.add_get("/api/chat", self._chat)
        app.router.add_get("/api/info", self._info)
        app.router.add_get("/api/sessions", self._sessions)
        AdapterRoutes(self.adapters, self.desk, self.scheduler.flips).add_routes(app.router)
        self.base.add_routes(app.router)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._expose)
        return app

    def end(self) -> None:
        """Ask a running `run` to drain and return; asked again, it does not wait for the calls."""
        if self._end.is_set():
            self.desk.hurry()
        self._end.set()

    def reload(self) -> None:
        """Read tokens and certificate again. A mistake in them is told in the log, and the old ones hold. Blocks."""
        self.auth.reload()
        if self.tls is not None:
            try:
                self.tls.reload()
            except ConfigError as problem:
                log.error("the certificate stays as it was: %s", problem)  # noqa: TRY400 - the sentence says all

    async def run(self, on_listening: Callable[[str, int], None] = lambda _host, _port: None) -> bool:
        """Serve until `end` is called or the engine fails. Returns whether the engine was well to the end.

        `on_listening` is told the address as soon as the port is open, which is before the model is ready.
        Raises `OSError` when the address cannot be listened on.
        """
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            shutdown_timeout=_SHUTDOWN_S,
            keepalive_timeout=_SILENT_S,
            lingering_time=_LINGER_S,
        )
        await runner.setup()
        assert runner.server is not None, "it has just been set up"
        self.connections.watch(runner.server)
        try:
            context = self.tls.context if self.tls else None
            site = web.TCPSite(runner, self._config.host, self._config.port, ssl_context=context)
            await site.start()
            host, port = runner.addresses[0][:2]
            on_listening(host, port)
            await self._end.wait()
            await self.desk.drain()
        finally:
            await runner.cleanup()
        return self.scheduler.health is not Health.FAILED

    async def _engine_thread(self, _app: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self.auth.on_change = lambda: loop.call_soon_threadsafe(self.desk.look_again)
        self.scheduler.start()
        guarding = asyncio.create_task(self.guard.run(), name="load-guard")
        following = asyncio.create_task(self.auth.follow(), name="tokens")
        tasks = [guarding, following]
        if self._config.learn:
            tasks.append(asyncio.create_task(self.learner.run(), name="learner"))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.scheduler.stop)

    def _apply(self, engine: Engine, plan: Plan, idle: frozenset[int]) -> "Future[Applied]":
        return self.scheduler.obey(engine, plan, idle)

    def _on_health(self, health: Health) -> None:
        model, capacity = self.scheduler.model, self.scheduler.capacity
        if health is Health.READY and model is not None and capacity is not None:
            self.desk.open(model, capacity.callers)
            self.metrics.capacity.set(capacity.measured)
            self.metrics.admission.set(1)
            _log_capacity(capacity)
            log.info("ready: %s on %s, %d slots", model.checkpoint, model.device, capacity.callers)
        elif health is Health.FAILED:
            log.error("the model cannot be used: %s", self.scheduler.problem)
            self.desk.fail()
            self._end.set()

    def _on_pressure(self, admitting: bool) -> None:
        self.metrics.admission.set(admitting)
        self.desk.admit(admitting)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        visitor = request[VISITOR]
        socket = ChatSocket(self._config, spend=lambda size: self.limits.message(visitor, size))
        if not await socket.open(request):
            return web.Response()  # aiohttp wants one, and drops it
        try:
            with self.limits.call(visitor):
                await self.desk.serve(socket, request.query, who=request[WHO])
        except TooManyCallsError as refusal:
            self.metrics.count_rejection(Rejection(refusal.reason))
            await socket.refuse(refusal)
        return socket.response

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        state = "draining" if self.desk.draining else str(self.scheduler.health)
        told = self.listening.problem and self.auth.may_watch(request)
        trouble = {"journal": self.listening.problem} if told else {}
        return web.json_response({"state": state} | trouble, status=200 if state == Health.READY else 503)

    async def _info(self, request: web.Request) -> web.Response:
        model, capacity = self.scheduler.model, self.scheduler.capacity
        told = self.auth.may_watch(request)
        return _json(
            {
                "model": model and _describe_model(model, told=told),
                "adapter": live.id if (live := self.adapters.plan.live) is not None else None,
                "versions": self._versions,
                "slots": {
                    "total": capacity.callers if capacity else 0,
                    "busy": self.desk.busy,
                    "parked": self.desk.parked,
                    "waiting": self.desk.waiting,
                },
                "capacity": capacity and _describe(capacity, admitting=self.guard.open),
                "sample_rate": WIRE_SAMPLE_RATE_HZ,
                "model_sample_rate": model and model.sample_rate,
                "frame_ms": model and round(1000 * model.frame_s),
                "max_speed": self._config.max_speed,
            }
        )

    async def _sessions(self, _request: web.Request) -> web.Response:
        return _json({"sessions": self.desk.views()})

    async def _expose(self, _request: web.Request) -> web.Response:
        self.metrics.step_age.set(self.scheduler.step_age_s)
        self.metrics.kv_fill.set(self.desk.context_fill())
        return web.Response(body=self.metrics.expose(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _describe_model(model: ModelInfo, *, told: bool) -> dict[str, str]:
    """`told`: why a fallback serves may name folders and programs, which is for who may watch."""
    trouble = {"fallback": model.fallback} if told and model.fallback else {}
    return {
        "checkpoint": model.name,
        "device": model.device,
        "work": model.work,
        "cache_dtype": model.cache_dtype,
    } | trouble


def _describe(capacity: Capacity, *, admitting: bool) -> dict[str, Any]:
    return {
        "measured": capacity.measured,
        "engine_slots": capacity.slots,
        "share_of_frame": capacity.share,
        "step_ms": {str(rows): round(1000 * seconds, 2) for rows, seconds in capacity.step_s.items()},
        "caller_loop_ms": round(1000 * capacity.caller.loop_s, 3),
        "caller_encode_ms": round(1000 * capacity.caller.encode_s, 3),
        "caller_listen_ms": round(1000 * capacity.caller.listen_s, 3),
        "admitting": admitting,
    }


def _log_capacity(capacity: Capacity) -> None:
    steps = ", ".join(f"{rows}: {1000 * seconds:.1f}" for rows, seconds in capacity.step_s.items())
    log.info(
        "this machine holds %d callers on time, of %d slots (ms of a step by callers: %s; beside it %.2f ms a caller)",
        capacity.measured,
        capacity.slots,
        steps,
        1000 * (capacity.caller.loop_s + capacity.caller.encode_s),
    )
    if capacity.callers > capacity.measured:
        log.warning(
            "%d callers are to be served, %d would be on time: expect late frames, or set slots to less",
            capacity.callers,
            capacity.measured,
        )


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
