"""Admission closes while the server is late, and opens again: the rule, and a real server that becomes slow."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import Engine
from server.pressure import LoadGuard
from tests.server.caller import Caller, calling, voice
from tests.server.live import serving, until


class Second(LoadGuard):
    """A guard that is told whole seconds, and notes what it said."""

    def __init__(self) -> None:
        self.said: list[bool] = []
        super().__init__(self.said.append)

    def past(self, *, late: int = 0, answers: int = 100, lag_s: float = 0.0) -> None:
        self.note(answers, late)
        self.judge(lag_s)


def test_three_late_seconds_close_and_five_good_ones_open() -> None:
    guard = Second()
    for _ in range(2):
        guard.past(late=50)
    assert guard.said == []
    guard.past(late=50)
    assert guard.said == [False]
    for _ in range(4):
        guard.past()
    assert guard.said == [False]
    guard.past()
    assert guard.said == [False, True]


def test_single_late_frames_and_single_late_seconds_close_nothing() -> None:
    guard = Second()
    for second in range(100):
        guard.past(late=2)
        guard.past(late=100 if second % 3 == 0 else 0)
    assert guard.said == []


def test_a_late_second_while_closed_begins_the_five_again() -> None:
    guard = Second()
    for _ in range(3):
        guard.past(late=100)
    for _ in range(4):
        guard.past()
    guard.past(late=100)
    for _ in range(4):
        guard.past()
    assert guard.said == [False]
    guard.past()
    assert guard.said == [False, True]


def test_a_step_that_does_not_end_counts_even_though_nothing_is_answered() -> None:
    said: list[bool] = []
    age_s = 2.0
    guard = LoadGuard(said.append, lambda: age_s)
    for _ in range(3):
        guard.judge(0.0)
    assert said == [False]
    age_s = 0.01
    for _ in range(5):
        guard.judge(0.0)
    assert said == [False, True]


def test_an_event_loop_that_is_late_counts_even_without_callers() -> None:
    guard = Second()
    for _ in range(3):
        guard.past(answers=0, lag_s=0.2)
    assert guard.said == [False]
    for _ in range(5):
        guard.past(answers=0)
    assert guard.said == [False, True]


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10), st.floats(0, 0.2)), max_size=60))
def test_what_it_says_is_what_it_is_and_never_the_same_twice(seconds: list[tuple[int, int, float]]) -> None:
    guard = Second()
    for late, more, lag_s in seconds:
        guard.past(late=late, answers=late + more, lag_s=lag_s)
    assert guard.open == (guard.said[-1] if guard.said else True)
    assert guard.said == [bool(number % 2) for number in range(len(guard.said))]


class Slows(Engine):
    """A real engine whose steps take longer than a frame while it is `slow`: another program has come."""

    slow = False

    def step(self, pcm: Any, active: Any) -> Any:
        out = super().step(pcm, active)
        if Slows.slow:
            time.sleep(0.12)
        return out


async def _talk_on(caller: Caller) -> None:
    """Speak at the pace of speech, for ever."""
    (frame,) = voice(1)
    while True:
        await caller.send(1, caller.encode(frame))
        await asyncio.sleep(0.08)


async def test_a_server_that_is_late_admits_nobody_until_it_is_on_time_again(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.pressure._INTERVAL_S", 0.25)  # seconds of a quarter, so that the test is short
    async with serving(tiny, slots=3, engine=Slows, max_waiting=1, max_speed=1.0) as live, calling(live.url) as first:
        await first.greeted()
        talking = asyncio.create_task(_talk_on(first))
        Slows.slow = True
        try:
            await until(lambda: live.count("duologue_admission_open") == 0)
            async with calling(live.url) as waiting:
                await waiting.until(lambda: bool(waiting.notes))
                assert waiting.notes[0] == {"type": "queue", "position": 1, "eta_s": None}
                async with calling(live.url) as refused:
                    assert await refused.closed() == 4429
                    assert "while 1 are served and 1 wait" in refused.errors[0]
                assert json.loads((await live.get("/api/info"))[1])["capacity"]["admitting"] is False
                assert (0, b"") not in waiting.messages, "there is a free slot, and it is not given out"
                Slows.slow = False
                await waiting.greeted()
                assert live.count("duologue_admission_open") == 1
                assert not first.errors, "who was in stayed in"
        finally:
            Slows.slow = False
            talking.cancel()


async def test_a_caller_who_floods_does_not_close_admission(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames wait for its own pace, not for the server. Judged by them alone: the machine may be busy."""
    guard = Second()
    async with serving(tiny, max_speed=1.0) as live, calling(live.url) as flooding:
        monkeypatch.setattr(live.server.scheduler, "_on_answers", guard.note)
        await flooding.greeted()
        for count, frame in enumerate(voice(40), 1):
            for _ in range(3):
                await flooding.send(1, flooding.encode(frame))
            await asyncio.sleep(0.05)
            if count % 4 == 0:
                guard.judge(0.0)
            assert guard.open
        waited = live.count("duologue_tick_duration_seconds_count", stage="total")
        waited -= live.count("duologue_tick_duration_seconds_bucket", stage="total", le="0.08")
        assert waited > 10
        assert live.count("duologue_frames_total", result="late") < waited / 2
