"""The engines in service: the newest takes new calls, older ones finish theirs and are then let go.

Nearly always there is one. A second comes when another base model is to serve: nobody's call changes its model, so both
step until the last call of the older one is over. A slot is one call's in all of them, so slots need no second number.
Lives in the tick thread; it knows engines, and nothing of threads or sockets.
"""

import gc
import logging
import sys
import threading
import time
from collections.abc import Collection, Iterable
from typing import Final

from server.adapter_plan import Plan
from server.adapter_rows import AdapterRows
from server.adapters import Applied
from server.engine import Engine
from server.errors import CheckpointError
from server.session import ModelInfo, Session
from server.sound import OPUS_RATES_HZ
from server.tick import Rows, Tick

__all__ = ["SWITCH_S", "Generation", "Generations", "checked", "describe", "settle_interpreter"]

log = logging.getLogger(__name__)

SWITCH_S: Final = 0.001
"""After which a thread that computes in Python hands the interpreter's lock over."""


class Generation:
    """One engine: what it is, who talks in its slots, and which adapter each speaks with."""

    def __init__(self, engine: Engine, model: ModelInfo, plan: Plan, *, swap_live: bool) -> None:
        self.engine = engine
        self.model = model
        self.rows = Rows(engine)
        self.adapters = AdapterRows(engine, swap_live=swap_live, plan=plan)

    def open(self, session: Session, slot: int) -> int | None:
        """Start a call in a slot. Returns the seed in use, None when the engine could not; raises when it is broken."""
        version = self.adapters.choose(session)
        number = None if version is None else version.number
        seed = self.rows.open(session, slot, session.parameters.sampling, session.parameters.seed, number)
        if seed is not None:
            self.adapters.open(session, slot, version)
        return seed

    def close(self, session: Session, slot: int) -> None:
        """End a call, if it is here and no fault has."""
        if self.rows.close(session, slot):
            self.adapters.close(slot)

    def tick(self) -> Tick | None:
        """Step once if anybody here has a frame."""
        tick = self.rows.tick()
        for session in tick.faulty if tick is not None else ():
            self.adapters.forget(session)
        return tick


class Generations:
    """All of them. Empty until the first is added."""

    def __init__(self) -> None:
        self._all: tuple[Generation, ...] = ()

    @property
    def newest(self) -> Generation:
        """The one that takes new calls."""
        return self._all[-1]

    @property
    def older(self) -> tuple[ModelInfo, ...]:
        """Models whose last calls go on, the oldest first. May be asked from another thread."""
        return tuple(each.model for each in self._all[:-1])

    @property
    def step_age_s(self) -> float:
        """How long the present step has taken; 0 between steps. May be asked from another thread."""
        return max((each.rows.step_age_s for each in self._all), default=0.0)

    @property
    def awaiting_silence(self) -> frozenset[int]:
        """Slots whose calls are to change their adapter when nobody speaks. May be asked from another thread."""
        return frozenset().union(*(each.adapters.waiting for each in self._all))

    def add(self, generation: Generation) -> None:
        """Give new calls to this one."""
        self._all = (*self._all, generation)
        self._let_go()

    def open(self, session: Session, slot: int) -> int | None:
        """Start a call with the model that its session was made for. As `Generation.open`; None if that has gone."""
        for each in self._all:
            if each.model is session.model:
                return each.open(session, slot)
        return None

    def close(self, session: Session, slot: int) -> None:
        """End a call."""
        for each in self._all:
            each.close(session, slot)
        self._let_go()

    def tick(self) -> list[Tick]:
        """Step every engine once in which anybody has a frame."""
        return [tick for each in self._all if (tick := each.tick()) is not None]

    def wait_s(self) -> float | None:
        """Seconds until somebody may be served, None for not before another frame arrives."""
        waits = (each.rows.wait_s() for each in self._all)
        return min((wait for wait in waits if wait is not None), default=None)

    def obey(self, engine: Engine, plan: Plan, idle: Iterable[int]) -> Applied:
        """Follow a plan made for one engine, of which older ones take only who may not speak any more."""
        began, moved, dropped = time.perf_counter(), 0, frozenset[int]()
        for each in self._all:
            if each.engine is engine:
                moved += each.adapters.adopt(plan)
                dropped = each.adapters.drop(idle)
            else:
                moved += each.adapters.restrict(plan.allowed)
        return Applied(dropped=dropped, moved=moved, flip_s=time.perf_counter() - began)

    def silent(self, sessions: Collection[Session]) -> int:
        """Note in which calls nobody speaks. Returns how many changed their adapter."""
        return sum(each.adapters.silent(sessions) for each in self._all)

    def _let_go(self) -> None:
        ended = [each for each in self._all[:-1] if each.rows.empty]
        for each in ended:
            log.info("the last call with %s is over: its memory is given back", each.model.name)
            self._all = tuple(other for other in self._all if other is not each)
        if ended:
            # Freeing hundreds of megabytes takes longer than a tick has.
            threading.Thread(target=ended.clear, name="duologue-let-go", daemon=True).start()


def checked(engine: Engine) -> Engine:
    """Raise `CheckpointError` for an engine whose sound cannot be carried."""
    if engine.sample_rate not in OPUS_RATES_HZ:
        raise CheckpointError(
            engine.checkpoint,
            got=f"a codec at {engine.sample_rate} Hz",
            expected=f"one of {', '.join(map(str, OPUS_RATES_HZ))} Hz, the rates of Opus",
            remedy="choose another checkpoint",
        )
    return engine


def describe(engine: Engine) -> ModelInfo:
    """What a session must know of an engine."""
    return ModelInfo(
        checkpoint=engine.checkpoint,
        device=engine.device,
        slots=engine.slots,
        sample_rate=engine.sample_rate,
        frame_size=engine.frame_size,
        frame_rate=engine.frame_rate,
        codebooks=1 + engine.model_codebooks + engine.user_codebooks,
        model_codebooks=engine.model_codebooks,
        tokenizer=engine.text_tokenizer,
        silent_tokens=frozenset((engine.text_padding_id, engine.end_of_text_padding_id)),
        recommended_sampling=engine.recommended_sampling,
        base_sha256=engine.base_sha256,
        context_frames=engine.context_frames,
        work=engine.work,
        cache_dtype=engine.cache_dtype,
        fallback=engine.fallback,
    )


def settle_interpreter() -> None:
    """Keep the interpreter out of the tick's way, for the whole process.

    What is there for good leaves the garbage collector's rounds: a full one through torch's modules holds the
    interpreter for 0.12 s, longer than a frame. And a thread that computes in Python hands the interpreter's lock over
    after a millisecond instead of five: the tick, Opus and the event loop each ask for it once or twice per frame.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)
