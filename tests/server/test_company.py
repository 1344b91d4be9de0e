"""A caller's tokens do not depend on the neighbours: random company over real sockets, compared with being alone.

Callers come, talk at the same time, fall silent, are cut off, come back, and hang up, as hypothesis likes. The engine
notes what each conversation heard and said. Afterwards each is told to an engine alone, and must say the same.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from websockets.asyncio.client import connect

from server.engine import Engine, SamplingParams
from tests.server.caller import Caller, voice
from tests.server.live import LiveServer, serving, until

SLOTS = 4
MOST_FRAMES = 6

T = TypeVar("T")


class Conversation:
    """What one opening of a slot led to."""

    def __init__(self, slot: int, params: SamplingParams, seed: int) -> None:
        self.slot, self.params, self.seed = slot, params, seed
        self.heard: list[np.ndarray] = []
        self.said: list[list[int]] = []
        self.logprob: list[float] = []
        self.together = 0
        """Steps that it shared with somebody."""


class Notes(Engine):
    """A real engine that notes every conversation once it is told to."""

    noting: list[Conversation] | None = None

    def open(self, slot: int, params: Any = None, adapter: Any = None, seed: int | None = None) -> int:
        seed = super().open(slot, params, adapter, seed)
        if Notes.noting is not None:
            self._present = getattr(self, "_present", {}) | {slot: Conversation(slot, params, seed)}
            Notes.noting.append(self._present[slot])
        return seed

    def step(self, pcm: Any, active: Any) -> Any:
        out = super().step(pcm, active)
        if Notes.noting is not None:
            for slot in np.flatnonzero(active):
                talk = self._present[slot]
                talk.heard.append(np.array(pcm[slot]))
                talk.said.append(out.tokens[slot].tolist())
                talk.logprob.append(float(out.logprob[slot]))
                talk.together += int(active.sum()) > 1
        return out


class Company(RuleBasedStateMachine):
    """Callers `1, 2, ...` at one server. `present` are connected, `absent` were cut off and hold a token."""

    runner: asyncio.Runner
    live: LiveServer

    def __init__(self) -> None:
        super().__init__()
        self.present: list[Caller] = []
        self.absent: list[Caller] = []
        self.seeds = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def in_time() -> T:
            async with asyncio.timeout(30):
                return await work

        return self.runner.run(in_time())

    @precondition(lambda self: len(self.present) + len(self.absent) < SLOTS)
    @rule(temperature=st.sampled_from(["0.7", "0", "1.2"]))
    def arrive(self, temperature: str) -> None:
        self.seeds += 1
        self.run(self._call(f"?text_seed={self.seeds}&text_temperature={temperature}"))

    async def _call(self, query: str) -> Caller:
        caller = Caller(await connect(f"ws{self.live.url[4:]}/api/chat{query}", compression=None))
        await caller.greeted()
        self.present.append(caller)
        return caller

    @precondition(lambda self: self.present)
    @rule(data=st.data(), frames=st.integers(1, MOST_FRAMES))
    def talk(self, data: st.DataObject, frames: int) -> None:
        """Some of those present speak at once, each a sound of its own."""
        speakers = data.draw(st.lists(st.sampled_from(self.present), min_size=1, unique=True))
        self.run(self._talk(speakers, frames))

    async def _talk(self, speakers: list[Caller], frames: int) -> None:
        before = self._heard()
        seeds = range(self.seeds, self.seeds + len(speakers))
        await asyncio.gather(
            *(self._say(each, voice(frames, seed=seed)) for each, seed in zip(speakers, seeds, strict=True))
        )
        # More where what was said before a cut is heard only now.
        await until(lambda: self._heard() >= before + frames * len(speakers))

    async def _say(self, caller: Caller, frames: list[Any]) -> None:
        for frame in frames:
            await caller.send(1, caller.encode(frame))

    def _heard(self) -> int:
        assert Notes.noting is not None
        return sum(len(talk.heard) for talk in Notes.noting)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), unheard=st.integers(0, 3))
    def be_cut_off(self, data: st.DataObject, unheard: int) -> None:
        """In the middle of a sentence: what was under way may be heard or not."""
        caller = self._leaving(data)
        self.absent.append(caller)
        self.run(self._cut(caller, unheard))

    async def _cut(self, caller: Caller, unheard: int) -> None:
        await self._say(caller, voice(unheard))
        caller.socket.transport.abort()
        await until(lambda: self.live.server.desk.parked == len(self.absent))
        await asyncio.sleep(0.02)  # for what is in the inbox, which may be heard or not

    @precondition(lambda self: self.absent)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.absent))
        self.absent.remove(caller)
        back = self.run(self._call(f"?resume_token={caller.session['resume_token']}"))
        assert back.session["id"] == caller.session["id"]

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        self.run(self._leaving(data).hang_up())

    def _leaving(self, data: st.DataObject) -> Caller:
        caller = data.draw(st.sampled_from(self.present))
        self.present.remove(caller)
        return caller

    @invariant()
    def nobody_was_refused(self) -> None:
        assert not [caller.errors for caller in self.present if caller.errors]

    def teardown(self) -> None:
        self.run(self._everybody_leaves())

    async def _everybody_leaves(self) -> None:
        for caller in self.present:
            await caller.hang_up()
        for caller in self.absent:  # they come back to say goodbye: nothing stays parked for the next example
            await (await self._call(f"?resume_token={caller.session['resume_token']}")).hang_up()
        await self.live.empty()


def _is_said_alone(engine: Engine, talk: Conversation) -> bool:
    engine.open(talk.slot, talk.params, seed=talk.seed)
    active = np.arange(engine.slots) == talk.slot
    pcm = np.zeros((engine.slots, engine.frame_size), np.float32)
    said, logprob = [], []
    for frame in talk.heard:
        pcm[talk.slot] = frame
        out = engine.step(pcm, active)
        said.append(out.tokens[talk.slot].tolist())
        logprob.append(float(out.logprob[talk.slot]))
    engine.close(talk.slot)
    return said == talk.said and np.array_equal(logprob, talk.logprob, equal_nan=True)


def _all_at_once(conversations: list[Conversation]) -> None:
    """Three callers, until many steps were of several: hypothesis may leave out that anybody talks."""
    machine = Company()
    for seed in range(SLOTS - 1):
        machine.run(machine._call(f"?text_seed={seed}&text_temperature=1.2"))
    while sum(talk.together for talk in conversations) <= 20:
        machine.run(machine._talk(machine.present, MOST_FRAMES))
    machine.teardown()


def test_a_callers_tokens_do_not_depend_on_the_neighbours(tiny: Path) -> None:
    Notes.noting = None
    with asyncio.Runner() as runner:
        server = serving(tiny, slots=SLOTS, engine=Notes, resume_grace_s=60.0)
        Company.runner, Company.live = runner, runner.run(server.__aenter__())
        conversations: list[Conversation] = []
        Notes.noting = conversations
        try:
            _all_at_once(conversations)
            run_state_machine_as_test(
                Company,
                settings=settings(
                    max_examples=12,
                    stateful_step_count=20,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            Notes.noting = None
            runner.run(server.__aexit__(None, None, None))
    alone = Engine.load(tiny, slots=SLOTS, device="cpu")
    assert [talk.slot for talk in conversations if not _is_said_alone(alone, talk)] == []
