"""All callers' frames through the engine: the thread that ticks, and its hand-overs to the event loop.

The scheduler owns the engine, or for a while two (`generations`), and the thread in which they step. The event loop
asks it to open and close slots and wakes it when a frame is in an inbox; replies go back to the event loop by way of
the encoding thread, one hand-over per step. It knows nothing of sockets or queues, and it never waits for either.

A step begins as soon as any open slot has a frame, and takes one frame from every slot that has one. Frames that
arrive during a step share the next (docs/decisions/0004-step-as-soon-as-there-is-a-frame.md).
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from enum import StrEnum
from typing import Final

import msgspec

from server.adapter_plan import Plan
from server.adapters import Adapters, Applied
from server.capacity import Capacity, Limits, callers_on_time, fit_steps, load_wide, share_on
from server.encoding import EncodedStep, EncodingThread
from server.engine import Engine
from server.errors import DuologueError, FaultError, ServerFailedError
from server.generations import Generation, Generations, checked, describe, settle_interpreter
from server.listening import Listening
from server.metrics import Metrics, Stage
from server.protocol import FRAME_MS
from server.rehearsal import rehearse
from server.session import ModelInfo, Report, Session
from server.tick import Step

__all__ = ["Flips", "Health", "Scheduler"]

log = logging.getLogger(__name__)

_STOP_S: Final = 10.0
_FRAME_S: Final = FRAME_MS / 1000

_Command = Callable[[], None]


class Health(StrEnum):
    """How the engine is."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    """It could not be loaded, or a step raised. Only a restart helps."""


class Flips(msgspec.Struct, kw_only=True):
    """Changes of adapter so far, for the operator. The tick thread writes."""

    calls_moved: int = 0
    longest_s: float = 0.0
    """The most that the tick was held up by one."""

    def add(self, moved: int, flip_s: float) -> None:
        """Note one."""
        self.calls_moved += moved
        self.longest_s = max(self.longest_s, flip_s)


class Scheduler:
    """The engine, its thread, and the sessions in its slots.

    `load` makes an engine with so many slots, in the thread; how many depends on `limits` and on what is measured.
    `on_health` runs on the event loop whenever `health` has changed, and `on_answers` at every step with the number
    of answers and how many of them the server itself made late.
    """

    def __init__(
        self,
        *,
        load: Callable[[int], Engine],
        limits: Limits,
        metrics: Metrics,
        listening: Listening,
        adapters: Adapters,
        swap_live: bool,
        on_health: Callable[[Health], None],
        on_answers: Callable[[int, int], None],
    ) -> None:
        self.health = Health.LOADING
        self.model: ModelInfo | None = None
        self.capacity: Capacity | None = None
        self.problem = ""
        self._load = load
        self._limits = limits
        self._metrics = metrics
        self._listening = listening
        self._adapters = adapters
        self._swap_live = swap_live
        self._on_health = on_health
        self._on_answers = on_answers
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = False
        self._generations = Generations()
        self.flips = Flips()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._encoding = EncodingThread(lambda step: self._post(lambda: self._deliver(step)))
        self._thread = threading.Thread(target=self._run, name="duologue-tick", daemon=True)

    def start(self) -> None:
        """Start the thread, which loads the model first."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present step. Blocks; for an executor or the end of the program."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._encoding.stop()
        self._adapters.stop()
        self._listening.stop()

    def wake(self) -> None:
        """Say that a frame is in an inbox. Never blocks."""
        self._wake.set()

    @property
    def step_age_s(self) -> float:
        """How long the engine's present step has taken; 0 between steps and before the engine is ready."""
        return self._generations.step_age_s

    @property
    def older_models(self) -> tuple[ModelInfo, ...]:
        """Models that take no new calls any more, and whose last ones go on."""
        return self._generations.older

    async def open(self, session: Session, slot: int) -> None:
        """Start a conversation in a slot; its frames are taken from then on.

        Raises `FaultError` when the engine could not, `ServerFailedError` when it has failed for good.
        """
        opened: Future[None] = Future()
        self._command(lambda: self._open(session, slot, opened))
        if self.health is Health.FAILED:  # asked after the command is queued: the thread may just have ended
            raise ServerFailedError
        await asyncio.wrap_future(opened)

    def close(self, session: Session, slot: int, reason: str) -> None:
        """End the conversation in a slot, before anything that is asked for later. Returns at once."""
        self._command(lambda: self._close(session, slot, reason))

    def report(self, session: Session, report: Report) -> None:
        """Pass on what a client says about its call. Returns at once."""
        self._listening.report(session, report)

    def obey(self, engine: Engine, plan: Plan, idle: frozenset[int]) -> "Future[Applied]":
        """Have a plan followed between two steps, and places freed that nobody uses. Returns at once."""
        applied: Future[Applied] = Future()

        def follow() -> None:
            try:
                done = self._generations.obey(engine, plan, idle)
                self.flips.add(done.moved, done.flip_s)
                applied.set_result(done)
            except Exception as problem:  # noqa: BLE001 - whoever waits is to know, and the tick goes on
                applied.set_exception(problem)

        self._command(follow)
        return applied

    def renew(self, engine: Engine, plan: Plan) -> "Future[ModelInfo]":
        """Give new calls to another engine, which is warm; those that are under way end with theirs.

        Nothing changes when the future is cancelled before the tick thread comes to it.
        """
        renewed: Future[ModelInfo] = Future()

        def add() -> None:
            if not renewed.set_running_or_notify_cancel():
                return
            model = describe(engine)
            self._generations.add(Generation(engine, model, plan, swap_live=self._swap_live))
            self.model = model
            renewed.set_result(model)

        self._command(add)
        return renewed

    @property
    def _engine(self) -> Engine:
        return self._generations.newest.engine

    def _on_silence(self, sessions: Collection[Session]) -> None:
        self._command(lambda: self._move_silent(sessions))

    def _command(self, command: _Command) -> None:
        self._commands.put(command)
        self._wake.set()

    # The rest runs in the tick thread.

    def _run(self) -> None:
        try:
            self._generations.add(self._prepare())
            self._tell(Health.READY)
            while not self._stopping:
                self._obey()
                if not self._tick():
                    self._wake.wait(self._generations.wait_s())
                    self._wake.clear()
            self._obey()
        except DuologueError as problem:
            self._fail(str(problem))
        except Exception as problem:
            log.exception("the engine has failed")
            self._fail(f"{type(problem).__name__}: {problem}")

    def _prepare(self) -> Generation:
        """Load the engine and find out what it can hold: about a second of the start goes into the latter."""
        engine, step_s = load_wide(lambda slots: checked(self._load(slots)), self._limits, frame_s=_FRAME_S)
        model = describe(engine)
        caller = rehearse(model)
        cost, share = fit_steps(step_s), share_on(engine.device)
        measured = callers_on_time(cost, caller, share=share, frame_s=model.frame_s, at_most=model.slots)
        self.capacity = Capacity(
            callers=self._limits.slots or max(1, measured),
            measured=measured,
            slots=model.slots,
            step_s=step_s,
            caller=caller,
            share=share,
        )
        self._listening.start(model, self._post)
        self._listening.watch_silence(lambda: self._generations.awaiting_silence, self._on_silence)
        prepared = self._adapters.prepare(engine)
        self._adapters.follow(prepared)
        self.model = model
        settle_interpreter()
        return Generation(engine, model, prepared.plan, swap_live=self._swap_live)

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self._stopping = True
        self._tell(Health.FAILED)
        self._obey()

    def _tell(self, health: Health) -> None:
        self.health = health
        self._post(lambda: self._on_health(health))

    def _post(self, callback: Callable[[], None]) -> None:
        """Run something on the event loop, unless the program is ending and there is none."""
        assert self._loop is not None, "start() comes first"
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def _obey(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    def _open(self, session: Session, slot: int, opened: Future[None]) -> None:
        if not opened.set_running_or_notify_cancel():
            return
        if self.health is Health.FAILED:
            opened.set_exception(ServerFailedError())
            return
        try:
            seed = self._generations.open(session, slot)
        except Exception:
            opened.set_exception(ServerFailedError())
            raise
        if seed is not None:
            self._listening.opened(session, slot, seed)
            opened.set_result(None)
        else:
            opened.set_exception(FaultError())

    def _move_silent(self, sessions: Collection[Session]) -> None:
        began = time.perf_counter()
        if moved := self._generations.silent(sessions):
            flip_s = time.perf_counter() - began
            self.flips.add(moved, flip_s)
            self._metrics.swap_flip.observe(flip_s)

    def _close(self, session: Session, slot: int, reason: str) -> None:
        self._listening.closed(session, slot, reason)
        if self.health is not Health.FAILED:
            self._generations.close(session, slot)

    def _tick(self) -> bool:
        """Step once if anybody has a frame, and hand over what came of it. Returns whether anybody had one."""
        ticks = self._generations.tick()
        for tick in ticks:
            for step in tick.steps:
                self._encoding.put(step)
                self._listening.heard(step)
            for session in tick.faulty:
                self._post(session.endings.fail)
        return bool(ticks)

    def _deliver(self, encoded: EncodedStep) -> None:
        """On the event loop again."""
        assert self.model is not None, "it is described before the first step"
        self._measure(encoded.step, self.model.frame_s)
        now, late = time.monotonic(), 0
        for each in encoded.replies:
            each.session.take_reply(each.reply, each.encoder)
            late += now - each.reply.due_at > self.model.frame_s
        due_at = min((each.reply.due_at for each in encoded.replies), default=now)
        self._metrics.observe_slack(self.model.frame_s - (now - due_at))
        self._on_answers(len(encoded.replies), late)

    def _measure(self, step: Step, frame_s: float) -> None:
        metrics, step_s = self._metrics, step.stepped_at - step.began_at
        if step.damaged:
            metrics.damaged.inc(step.damaged)
        metrics.observe(Stage.STEP, step_s)
        for stage, seconds in msgspec.structs.asdict(step.stages).items():
            metrics.observe(Stage(stage), seconds)
        if step_s > frame_s:
            metrics.overruns.inc()
