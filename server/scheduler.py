"""All callers' frames through one engine: the tick.

The scheduler owns the engine and the thread it runs in. The event loop asks it to open and close slots and wakes
it when a frame is in an inbox; replies go back to the event loop, one hand-over per step. It knows nothing of
sockets, queues or Opus, and it never waits for any of them.

A step begins as soon as any open slot has a frame, and takes one frame from every slot that has one. Frames that
arrive during a step share the next (docs/decisions/0004-step-as-soon-as-there-is-a-frame.md).
"""

import asyncio
import contextlib
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from typing import Final

import msgspec
import numpy as np

from server.boxes import HeardFrame, Reply
from server.engine import Engine, FrameOutput, StageSeconds
from server.errors import CheckpointError, DuologueError, ServerFailedError
from server.metrics import Metrics, Stage
from server.session import ModelInfo, Session
from server.sound import OPUS_RATES_HZ

__all__ = ["Health", "Scheduler"]

log = logging.getLogger(__name__)

_STOP_S: Final = 10.0

_Command = Callable[[], None]
_Taken = list[tuple[int, Session, HeardFrame]]


class Health(StrEnum):
    """How the engine is."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    """It could not be loaded, or a step raised. Only a restart helps."""


class Scheduler:
    """One engine, its thread, and the sessions in its slots.

    `load` runs in the thread. `on_health` runs on the event loop whenever `health` has changed.
    """

    def __init__(self, *, load: Callable[[], Engine], metrics: Metrics, on_health: Callable[[Health], None]) -> None:
        self.health = Health.LOADING
        self.model: ModelInfo | None = None
        self.problem = ""
        self._load = load
        self._metrics = metrics
        self._on_health = on_health
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = False
        self._rows: dict[int, Session] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
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

    def wake(self) -> None:
        """Say that a frame is in an inbox. Never blocks."""
        self._wake.set()

    async def open(self, session: Session, slot: int) -> None:
        """Start a conversation in a slot; its frames are taken from then on.

        Raises `ServerFailedError` when the engine has failed.
        """
        opened: Future[None] = Future()
        self._command(lambda: self._open(session, slot, opened))
        if self.health is Health.FAILED:  # asked after the command is queued: the thread may just have ended
            raise ServerFailedError
        await asyncio.wrap_future(opened)

    def close(self, session: Session, slot: int) -> None:
        """End the conversation in a slot, before anything that is asked for later. Returns at once."""
        self._command(lambda: self._close(session, slot))

    def _command(self, command: _Command) -> None:
        self._commands.put(command)
        self._wake.set()

    # The rest runs in the tick thread.

    def _run(self) -> None:
        try:
            self._engine = self._load()
            self._prepare(self._engine)
            while not self._stopping:
                self._obey()
                if (wait_s := self._tick()) != 0.0:
                    self._wake.wait(wait_s)
                    self._wake.clear()
            self._obey()
        except DuologueError as problem:
            self._fail(str(problem))
        except Exception as problem:
            log.exception("the engine has failed")
            self._fail(f"{type(problem).__name__}: {problem}")

    def _prepare(self, engine: Engine) -> None:
        if engine.sample_rate not in OPUS_RATES_HZ:
            raise CheckpointError(
                engine.checkpoint,
                got=f"a codec at {engine.sample_rate} Hz",
                expected=f"one of {', '.join(map(str, OPUS_RATES_HZ))} Hz, the rates of Opus",
                remedy="choose another checkpoint",
            )
        engine.warm_up()
        self._pcm = np.zeros((engine.slots, engine.frame_size), np.float32)
        self._active = np.zeros(engine.slots, np.bool_)
        self._frame_s = 1.0 / engine.frame_rate
        self.model = _describe(engine)
        _spare_collector()
        self._tell(Health.READY)

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self._stopping = True
        self._rows.clear()
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
        parameters = session.parameters
        try:
            self._engine.open(slot, parameters.sampling, seed=parameters.seed)
        except Exception:
            opened.set_exception(ServerFailedError())
            raise
        self._rows[slot] = session
        opened.set_result(None)

    def _close(self, session: Session, slot: int) -> None:
        if self._rows.get(slot) is session and self.health is not Health.FAILED:
            del self._rows[slot]
            self._engine.close(slot)

    def _tick(self) -> float | None:
        """Step once if anybody has a frame: 0. Otherwise seconds until somebody may be served, None for unknown."""
        began_at = time.monotonic()
        taken = self._take(began_at)
        if not taken:
            waits = [wait for session in self._rows.values() if (wait := session.inbox.wait_s(began_at)) is not None]
            return min(waits, default=None)
        out = self._engine.step(self._pcm, self._active)
        self._hand_over(taken, out, began_at, time.monotonic())
        return 0.0

    def _take(self, now: float) -> _Taken:
        taken: _Taken = []
        self._active[:] = False
        for slot, session in self._rows.items():
            if (frame := session.inbox.take(now)) is not None:
                self._pcm[slot] = frame.pcm
                self._active[slot] = True
                taken.append((slot, session, frame))
        return taken

    def _hand_over(self, taken: _Taken, out: FrameOutput, began_at: float, stepped_at: float) -> None:
        text, pcm, damaged = out.text.tolist(), out.pcm.numpy(), sum(out.damaged.tolist())
        replies = [
            (
                session,
                Reply(
                    pcm=pcm[slot] if text[slot] >= 0 else None,
                    token=text[slot],
                    heard_at=frame.at,
                    began_at=began_at,
                    stepped_at=stepped_at,
                ),
            )
            for slot, session, frame in taken
        ]
        self._post(lambda: self._deliver(replies, stepped_at - began_at, out.stages, damaged))

    def _deliver(self, replies: list[tuple[Session, Reply]], step_s: float, stages: StageSeconds, damaged: int) -> None:
        """On the event loop again."""
        self._metrics.damaged.inc(damaged)
        self._metrics.observe(Stage.STEP, step_s)
        for stage, seconds in msgspec.structs.asdict(stages).items():
            self._metrics.observe(Stage(stage), seconds)
        if step_s > self._frame_s:
            self._metrics.overruns.inc()
        for session, reply in replies:
            session.take_reply(reply)


def _spare_collector() -> None:
    """Take what is there for good out of the garbage collector's rounds.

    A full round through torch's modules holds the interpreter for 0.12 s, longer than a frame.
    """
    gc.collect()
    gc.freeze()


def _describe(engine: Engine) -> ModelInfo:
    return ModelInfo(
        checkpoint=engine.checkpoint,
        device=engine.device,
        slots=engine.slots,
        sample_rate=engine.sample_rate,
        frame_size=engine.frame_size,
        frame_rate=engine.frame_rate,
        tokenizer=engine.text_tokenizer,
        silent_tokens=frozenset((engine.text_padding_id, engine.end_of_text_padding_id)),
        recommended_sampling=engine.recommended_sampling,
    )
