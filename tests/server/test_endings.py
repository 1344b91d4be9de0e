"""Calls that end of themselves: too long, or nothing sent."""

import asyncio
from pathlib import Path

import pytest

from server.endings import Endings
from server.errors import FaultError, IdleError, TooLongError
from tests.server.caller import FRAME, Samples, calling, voice
from tests.server.clock import endings_clock
from tests.server.live import serving, until


async def test_a_caller_who_sends_nothing_is_sent_away(tiny: Path) -> None:
    async with serving(tiny, idle_s=0.3, resume_grace_s=30.0) as live, calling(live.url) as caller:
        await caller.greeted()
        await caller.send(6)  # pings and consent are no sound
        assert await caller.closed() == 4408
        assert "no sound message for 0.3 s" in caller.errors[0]
        assert live.count("duologue_sessions_total", end_reason="idle") == 1
        await live.empty()


async def test_a_silent_microphone_is_not_idle(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = endings_clock(monkeypatch)
    silence: list[Samples] = [frame * 0 for frame in voice(1)] * 10
    async with serving(tiny, idle_s=0.4) as live, calling(live.url) as caller:
        await caller.greeted()
        for count, frame in enumerate(silence):
            assert frame.shape == (FRAME,)
            await caller.send(1, caller.encode(frame))
            await caller.until(lambda count=count: len(caller.ogg) == count)
            await clock.pass_by(live, 0.1)
        await caller.send(1, b"")  # a whole message of no bytes counts, too: Full-Duplex-Bench sends such
        await caller.talk(silence[:1], answers=1)
        assert not caller.errors


async def test_who_waits_in_the_queue_is_not_idle(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = endings_clock(monkeypatch)
    async with serving(tiny, slots=1, idle_s=0.5) as live, calling(live.url) as first:
        await first.greeted()
        async with calling(live.url) as second:
            await until(lambda: live.count("duologue_sessions_waiting") == 1)
            for answers in (0, 1, 1, 1, 1, 1, 1, 1):
                await first.talk(voice(1), answers=answers)
                await clock.pass_by(live, 0.1)
            await first.hang_up()
            await second.greeted()
            await clock.pass_by(live, 0.1)
            await second.talk(voice(2))
            assert not second.errors


async def test_no_call_is_longer_than_allowed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = endings_clock(monkeypatch)
    async with serving(tiny, max_session_s=0.5) as live, calling(live.url) as caller:
        await caller.greeted()
        await clock.pass_by(live, 0.4)
        await caller.talk(voice(3))
        await clock.pass_by(live, 0.2)
        assert await caller.closed() == 4408
        assert "a call of 0.5 s" in caller.errors[0]
        assert live.count("duologue_sessions_total", end_reason="too_long") == 1


async def test_resuming_does_not_make_a_call_longer(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = endings_clock(monkeypatch)
    async with serving(tiny, max_session_s=0.8, resume_grace_s=30.0) as live, calling(live.url) as caller:
        await caller.greeted()
        await clock.pass_by(live, 0.4)
        caller.socket.transport.abort()
        await until(lambda: live.server.desk.parked == 1)
        async with calling(live.url, f"?resume_token={caller.session['resume_token']}") as back:
            await back.greeted()
            await clock.pass_by(live, 0.3)
            await back.talk(voice(2))
            await clock.pass_by(live, 0.2)
            assert await back.closed() == 4408


async def test_times_run_from_the_start_and_not_before() -> None:
    endings = Endings(max_session_s=0.05, idle_s=0.05)
    watching = asyncio.create_task(endings.watch())
    await asyncio.sleep(0.15)
    assert not watching.done()
    assert endings.age_s == 0.0
    endings.start()
    with pytest.raises((TooLongError, IdleError)):
        await asyncio.wait_for(watching, 2)


async def test_a_fault_ends_it_at_once() -> None:
    endings = Endings(max_session_s=100, idle_s=100)
    endings.start()
    watching = asyncio.create_task(endings.watch())
    await asyncio.sleep(0)
    endings.fail()
    with pytest.raises(FaultError):
        await asyncio.wait_for(watching, 2)
