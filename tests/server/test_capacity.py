"""How many callers are admitted: the arithmetic, the measuring, and what an operator sees of both."""

import gc
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.capacity import Limits, StepCost, callers_on_time, fit_steps, load_wide, share_on
from server.engine import Engine
from server.generations import describe
from server.rehearsal import CallerCost, rehearse
from tests.server.caller import calling, voice
from tests.server.live import serving

FRAME_S = 0.08
SHARE = share_on("cpu")
LIGHT = CallerCost(loop_s=0.0002, encode_s=0.0002)

costs = st.builds(StepCost, fixed_s=st.floats(1e-5, 0.2), row_s=st.floats(0, 0.05))
callers = st.builds(CallerCost, loop_s=st.floats(1e-5, 0.01), encode_s=st.floats(1e-5, 0.01))


@given(fixed_s=st.floats(1e-4, 0.1), row_s=st.floats(0, 0.01))
def test_a_line_is_found_again(fixed_s: float, row_s: float) -> None:
    found = fit_steps({rows: fixed_s + rows * row_s for rows in (1, 8, 32, 64)})
    assert found.fixed_s == pytest.approx(fixed_s, rel=1e-6)
    assert found.row_s == pytest.approx(row_s, rel=1e-6, abs=1e-9)


@given(st.dictionaries(st.sampled_from([1, 4, 8, 32, 64]), st.floats(1e-4, 0.2), min_size=1))
def test_whatever_is_measured_a_step_never_costs_less_with_more_callers(measured: dict[int, float]) -> None:
    found = fit_steps(measured)
    assert found.fixed_s >= 0
    assert found.row_s >= 0
    assert found.fixed_s + found.row_s > 0


@given(step=costs, caller=callers, at_most=st.integers(1, 100))
def test_so_many_fit_and_the_sum_shows_it(step: StepCost, caller: CallerCost, at_most: int) -> None:
    """By simulation of the hardest second: everybody at once, in every frame."""
    count = callers_on_time(step, caller, share=SHARE, frame_s=FRAME_S, at_most=at_most)
    assert 0 <= count <= at_most
    if count:
        assert step(count) + count * (caller.loop_s + caller.encode_s) <= SHARE * FRAME_S
    if count > 1:
        assert 2 * step(1) <= SHARE * FRAME_S, "who comes when a step has just begun waits for it"


@given(step=costs, caller=callers, factor=st.floats(1, 10))
def test_a_slower_machine_never_holds_more(step: StepCost, caller: CallerCost, factor: float) -> None:
    slower = StepCost(fixed_s=factor * step.fixed_s, row_s=factor * step.row_s)
    fast = callers_on_time(step, caller, share=SHARE, frame_s=FRAME_S, at_most=64)
    assert callers_on_time(slower, caller, share=SHARE, frame_s=FRAME_S, at_most=64) <= fast


@given(step=costs, caller=callers, listen_s=st.floats(0, 0.01), cores=st.integers(1, 3))
def test_hearing_must_keep_up(step: StepCost, caller: CallerCost, listen_s: float, cores: int) -> None:
    hearing = msgspec.structs.replace(caller, listen_s=listen_s)
    count = callers_on_time(step, hearing, share=SHARE, frame_s=FRAME_S, at_most=64, cores=cores)
    assert count <= callers_on_time(step, caller, share=SHARE, frame_s=FRAME_S, at_most=64, cores=cores)
    busy_s = count * (caller.loop_s + caller.encode_s + listen_s) + (step(count) if cores == 1 and count else 0.0)
    assert busy_s <= SHARE * FRAME_S


def test_the_goal_in_figures() -> None:
    """A step of 1.5 ms for one and 10 ms for 32 on top of half a millisecond a caller: that holds more than 32."""
    step = fit_steps({1: 0.0015, 32: 0.010})
    assert 45 < callers_on_time(step, LIGHT, share=SHARE, frame_s=FRAME_S, at_most=64) < 64
    assert callers_on_time(step, LIGHT, share=share_on("cuda:0"), frame_s=FRAME_S, at_most=64) == 64
    heavy = CallerCost(loop_s=0.0008, encode_s=0.0007)
    assert 15 < callers_on_time(step, heavy, share=SHARE, frame_s=FRAME_S, at_most=64) < 25


@pytest.fixture
def no_collections() -> Iterator[None]:
    """A test process holds far more than a server: one collection takes longer than ten frames."""
    gc.disable()
    yield
    gc.enable()


def test_a_caller_costs_something_and_nothing_is_left_of_the_rehearsal(tiny: Path, no_collections: None) -> None:
    model = describe(Engine.load(tiny, slots=1, device="cpu"))
    with ThreadPoolExecutor(1) as aside:  # as in the product, where it is the engine's thread
        cost = aside.submit(rehearse, model, frames=10).result()
    assert 0 < cost.listen_s < 1
    assert 1e-5 < cost.loop_s < 0.02
    assert 1e-5 < cost.encode_s < 0.02


def test_a_step_is_timed_as_the_middle_one_of_several(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_s = {2: iter([0.5, 0.001, 0.002]), 3: iter([0.004, 0.003, 0.007])}
    clock, untouched = SimpleNamespace(now=100.0), Engine.step

    def step(engine: Engine, pcm: Any, active: Any) -> Any:
        clock.now += next(rows_s[int(active.sum())])
        return untouched(engine, pcm, active)

    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr("server.engine.engine.time", SimpleNamespace(perf_counter=lambda: clock.now))
    engine = Engine.load(tiny, slots=3, device="cpu")
    assert [engine.measure_step(rows, 3) for rows in (2, 3)] == pytest.approx([0.002, 0.004])
    assert not engine.open_slots


class Wide(Engine):
    """A real engine that says its step takes 2 ms for every slot it has, whoever is in it."""

    loads: list[int] = []  # noqa: RUF012 - one test looks

    @classmethod
    def load(cls, *args: Any, slots: int = 8, **options: Any) -> Any:
        cls.loads.append(slots)
        return super().load(*args, slots=slots, **options)

    def measure_step(self, rows: int, frames: int = 5) -> float:
        return 0.0005 + 0.002 * self.slots


def test_an_engine_that_pays_for_its_slots_is_loaded_narrower(tiny: Path) -> None:
    Wide.loads = []

    def load(slots: int) -> Engine:
        engine: Engine = Wide.load(tiny, slots=slots, device="cpu")
        return engine

    engine, step_s = load_wide(load, Limits(slots=None, ceiling=64), frame_s=FRAME_S)
    assert Wide.loads[0] == 64
    assert 4 <= engine.slots <= 14, Wide.loads
    count = callers_on_time(fit_steps(step_s), LIGHT, share=SHARE, frame_s=FRAME_S, at_most=engine.slots)
    assert count == engine.slots
    engine, _ = load_wide(load, Limits(slots=20, ceiling=64), frame_s=FRAME_S)
    assert engine.slots == 20, "an operator who names a number has it"


class Steep(Engine):
    """A real engine that says it is slow for each row that moves: three callers are too many."""

    def measure_step(self, rows: int, frames: int = 5) -> float:
        return 0.0005 + 0.014 * rows


async def test_auto_admits_what_was_measured(tiny: Path) -> None:
    async with serving(tiny, slots="auto", engine=Steep, max_waiting=0) as live:
        info = json.loads((await live.get("/api/info"))[1])
        assert info["slots"]["total"] == info["capacity"]["measured"] == 2
        assert info["capacity"]["engine_slots"] == 64
        assert info["capacity"]["admitting"] is True
        assert info["capacity"]["step_ms"]["1"] == 14.5
        assert live.count("duologue_capacity_callers") == live.count("duologue_slots_total") == 2
        async with calling(live.url) as first, calling(live.url) as second:
            await first.greeted()
            await second.greeted()
            async with calling(live.url) as third:
                assert await third.closed() == 4429
            await first.talk(voice(3))


async def test_a_number_is_obeyed_and_warned_about(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tiny, slots=6, engine=Steep) as live:
        info = json.loads((await live.get("/api/info"))[1])
        assert (info["slots"]["total"], info["capacity"]["measured"]) == (6, 2)
        assert live.count("duologue_slots_total") == 6
        assert live.count("duologue_capacity_callers") == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["6 callers are to be served, 2 would be on time: expect late frames, or set slots to less"]


async def test_a_number_that_fits_is_not_warned_about(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tiny, slots=2):
        pass
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
