"""One tick: a frame from every caller who has one, one step of the engine, and whose fault it is when that raises.

Runs in the tick thread. It knows the engine and the callers' inboxes; threads, commands and the event loop are
`scheduler`'s business.
"""

import contextlib
import logging
import time
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.boxes import DueFrame
from server.engine import Engine, FrameOutput, SamplingParams, StageSeconds
from server.session import Session
from server.sound import Frame

__all__ = ["Answer", "Rows", "Step", "Tick"]

log = logging.getLogger(__name__)

_FATAL_FAULTS: Final = 3

_Taken = dict[int, tuple[Session, DueFrame]]


class Answer(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a step gave to one caller."""

    session: Session
    slot: int
    frame: DueFrame
    pcm: Frame | None
    """None while nothing is out yet."""
    token: int
    adapter: str
    """Id of the adapter that made this step; empty for the base model."""


class Step(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One step of the engine. Times are monotonic seconds."""

    answers: list[Answer]
    began_at: float
    stepped_at: float
    stages: StageSeconds
    tokens_BK: NDArray[np.int64]
    """All slots' columns, as `FrameOutput.tokens`."""
    logprob_B: NDArray[np.float32]
    damaged: int
    """Frames that were not sound and were heard as silence."""


class Tick(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What came of one tick: one step, or one for each row after a fault, and the callers whose calls are over."""

    steps: list[Step]
    faulty: list[Session]


class Rows:
    """The engine's slots and who talks in them.

    An exception ends the calls that cause it and no others: the rows of that tick are stepped again one by one, and
    those that raise again are closed. When that is every row of `_FATAL_FAULTS` ticks in a row, the engine is broken.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: dict[int, Session] = {}
        self._pcm = np.zeros((engine.slots, engine.frame_size), np.float32)
        self._pcm_of = [row.data for row in self._pcm]
        """Written through these, since numpy lets go of the interpreter's lock for every copy of 500 samples."""
        self._active = np.zeros(engine.slots, np.bool_)
        self._faults = 0
        self._began_at: float | None = None

    @property
    def step_age_s(self) -> float:
        """How long the present step has taken; 0 between steps. May be asked from another thread."""
        began_at = self._began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    @property
    def empty(self) -> bool:
        """Whether nobody talks."""
        return not self._sessions

    def open(
        self, session: Session, slot: int, sampling: SamplingParams, seed: int | None, adapter: int | None = None
    ) -> int | None:
        """Start a conversation in a slot. Returns the seed in use, None when the engine could not.

        `adapter` is the engine's number of one. Raises when the engine is broken.
        """
        try:
            used = self._engine.open(slot, sampling, adapter, seed)
        except Exception as problem:
            log.exception("slot %d could not be opened", slot)
            self._close(slot)
            self._blame(problem)
            return None
        self._sessions[slot] = session
        return used

    def close(self, session: Session, slot: int) -> bool:
        """End the session's conversation, unless a fault has. Returns whether it was there to end."""
        if self._sessions.get(slot) is not session:
            return False
        del self._sessions[slot]
        self._engine.close(slot)
        return True

    def wait_s(self) -> float | None:
        """Seconds until somebody may be served, None for not before another frame arrives."""
        now = time.monotonic()
        waits = (session.inbox.wait_s(now) for session in self._sessions.values())
        return min((wait for wait in waits if wait is not None), default=None)

    def tick(self) -> Tick | None:
        """Step once if anybody has a frame. Raises what the engine raised when it is broken."""
        taken = self._take(time.monotonic())
        if not taken:
            return None
        try:
            steps = [self._step(taken)]
        except Exception as problem:
            log.exception("a step with %d rows failed; trying them one by one", len(taken))
            return self._one_by_one(taken, problem)
        self._faults = 0
        return Tick(steps=steps, faulty=[])

    def _take(self, now: float) -> _Taken:
        taken: _Taken = {}
        for slot, session in self._sessions.items():
            if (frame := session.inbox.take(now)) is not None:
                taken[slot] = session, frame
        return taken

    def _step(self, taken: _Taken) -> Step:
        self._began_at = began_at = time.monotonic()
        self._active[:] = False
        for slot, (_, frame) in taken.items():
            self._pcm_of[slot][:] = frame.pcm.data
            self._active[slot] = True
        try:
            out = self._engine.step(self._pcm, self._active)
        finally:
            self._began_at = None
        return Step(
            answers=_answers(taken, out),
            began_at=began_at,
            stepped_at=time.monotonic(),
            stages=out.stages,
            tokens_BK=out.tokens.numpy(),
            logprob_B=out.logprob.numpy(),
            damaged=sum(out.damaged.tolist()),
        )

    def _one_by_one(self, taken: _Taken, problem: Exception) -> Tick:
        steps: list[Step] = []
        faulty: list[Session] = []
        for slot, (session, frame) in taken.items():
            try:
                steps.append(self._step({slot: (session, frame)}))
            except Exception:
                log.exception("slot %d fails alone, too: its call ends", slot)
                faulty.append(session)
                del self._sessions[slot]
                self._close(slot)
        if steps:
            self._faults = 0
        else:
            self._blame(problem)
        return Tick(steps=steps, faulty=faulty)

    def _blame(self, problem: Exception) -> None:
        """Count a fault that nothing worked beside. Raises it when it is one too many."""
        self._faults += 1
        if self._faults >= _FATAL_FAULTS:
            raise problem

    def _close(self, slot: int) -> None:
        """Close a slot after a fault, in whatever state it is."""
        with contextlib.suppress(Exception):
            if slot in self._engine.open_slots:
                self._engine.close(slot)


def _answers(taken: _Taken, out: FrameOutput) -> list[Answer]:
    text, pcm = out.text.tolist(), out.pcm.numpy()
    return [
        Answer(
            session=session,
            slot=slot,
            frame=frame,
            pcm=_own(pcm[slot]) if text[slot] >= 0 else None,
            token=text[slot],
            adapter=session.adapter,
        )
        for slot, (session, frame) in taken.items()
    ]


def _own(row: Frame) -> Frame:
    """A copy that holds on to no other row, made without letting go of the interpreter's lock."""
    return np.frombuffer(bytearray(row.data), np.float32)
