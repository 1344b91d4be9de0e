"""A connection breaks and the conversation goes on: tokens, parked slots, and who may have them."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sphn

from server.engine import Engine
from tests.server.caller import Caller, calling, voice
from tests.server.live import LiveServer, serving, until
from tests.server.ogg import pages
from tests.server.test_bad_input import _upgraded_by_hand


def drop(caller: Caller) -> None:
    """Break the connection without a word."""
    caller.socket.transport.abort()


async def parked(live: LiveServer, count: int = 1) -> None:
    await until(lambda: live.server.desk.parked == count)


@asynccontextmanager
async def lost_call(live: LiveServer, query: str = "", frames: int = 8) -> AsyncIterator[Caller]:
    """A caller who has talked for a while and is cut off; its call is parked."""
    async with calling(live.url, query) as caller:
        await caller.greeted()
        await caller.talk(voice(frames))
        drop(caller)
        await parked(live)
        yield caller


def resuming(live: LiveServer, token: str, **options: Any) -> Any:
    return calling(live.url, f"?resume_token={token}", **options)


class Remembers(Engine):
    """A real engine that keeps the frames and tokens of its only slot."""

    def step(self, pcm: Any, active: Any) -> Any:
        out = super().step(pcm, active)
        if self.remembering and active[0]:
            self.heard.append(np.array(pcm[0]))
            self.said.append(out.tokens[0].tolist())
        return out

    remembering = False
    heard: list[Any] = []  # noqa: RUF012 - one engine to a test
    said: list[list[int]] = []  # noqa: RUF012


async def test_the_same_conversation_goes_on_in_the_same_slot(tiny: Path) -> None:
    """Its tokens are those of the engine that heard the same frames without a break."""
    async with serving(tiny, slots=1, engine=Remembers, resume_grace_s=30.0) as live:
        Remembers.remembering, Remembers.heard, Remembers.said = True, [], []
        async with lost_call(live, "?text_seed=5") as lost:
            first = lost.session
            async with resuming(live, first["resume_token"]) as back:
                await back.greeted()
                assert back.messages[0] == (0, b""), "a new handshake"
                assert back.session["id"] == first["id"]
                assert back.session["resume_token"] not in (None, first["resume_token"])
                sent = live.server.desk.views()[0].heard_frames
                await back.talk(voice(10, seed=1), answers=10)  # the model is in the middle: every frame has its answer
                (view,) = live.server.desk.views()
                assert (view.slot, view.resumed, view.parked, view.heard_frames) == (0, 1, False, sent + 10)
                stream = pages(b"".join(back.ogg))
                assert [page[28:36] for page in stream[:2]] == [b"OpusHead", b"OpusTags"], "a fresh Ogg stream"
                decoder = sphn.OpusStreamReader(24000)
                assert sum(decoder.append_bytes(body).size for body in back.ogg) == 10 * 1920
        await live.empty()
        Remembers.remembering = False
        assert await asyncio.to_thread(_alone, tiny, Remembers.heard) == Remembers.said
        assert len(Remembers.said) == 18
        assert live.count("duologue_sessions_resumed_total") == 1
        assert live.count("duologue_sessions_total", end_reason="hang_up") == 1
        assert live.count("duologue_sessions_total", end_reason="lost") == 0


def _alone(checkpoint: Path, heard: list[Any]) -> list[list[int]]:
    engine = Engine.load(checkpoint, slots=1, device="cpu")
    engine.open(0, seed=5)
    return [engine.step(frame[None], np.ones(1, np.bool_)).tokens[0].tolist() for frame in heard]


async def test_a_parked_call_is_shown(tiny: Path) -> None:
    async with serving(tiny, resume_grace_s=30.0) as live, lost_call(live):
        (view,) = json.loads((await live.get("/api/sessions"))[1])["sessions"]
        assert (view["parked"], view["slot"], view["resumed"]) == (True, 0, 0)
        slots = json.loads((await live.get("/api/info"))[1])["slots"]
        assert slots == {"total": 2, "busy": 0, "parked": 1, "waiting": 0}
        assert live.count("duologue_sessions_parked") == 1
        assert live.count("duologue_sessions_active") == 0


@pytest.mark.parametrize("grace_s", [30.0, 0.0])
async def test_who_hangs_up_is_not_waited_for(tiny: Path, grace_s: float) -> None:
    async with serving(tiny, resume_grace_s=grace_s) as live:
        async with calling(live.url) as caller:
            await caller.greeted()
            assert (caller.session["resume_token"] is None) == (grace_s == 0.0)
        await live.empty()
        if grace_s:
            async with resuming(live, caller.session["resume_token"]) as late:
                assert await late.closed() == 4410


async def test_tokens_that_are_worth_nothing_are_all_told_the_same(tiny: Path) -> None:
    """Never issued, used, expired: the sentences do not differ, and the call they stood for goes on."""
    async with serving(tiny, resume_grace_s=30.0) as live:
        async with lost_call(live) as lost:
            used = lost.session["resume_token"]
            async with resuming(live, used) as back:
                await back.greeted()
                answers = [await _refused(live, used), await _refused(live, "A" * 32), await _refused(live, "x")]
                await back.talk(voice(2), answers=2)
                expired = back.session["resume_token"]
                drop(back)
                await parked(live)
                live.server.desk._expire(*live.server.desk._parking.parked)  # as its timer does after 30 s
                await live.empty()
                answers.append(await _refused(live, expired))
        assert set(answers) == {answers[0]}
        code, sentence = answers[0]
        assert code == 4410
        assert "expected that of the last session message, within 30 s of losing the connection" in sentence
        assert live.count("duologue_admission_rejected_total", reason="not_resumable") == 4
        assert live.count("duologue_sessions_total", end_reason="lost") == 1


async def _refused(live: LiveServer, token: str) -> tuple[int, str]:
    async with resuming(live, token) as caller:
        code = await caller.closed()
        assert [kind for kind, _ in caller.messages] == [5]
        return code, caller.errors[0]


async def test_a_valid_token_takes_the_call_over_from_a_socket_that_is_still_there(tiny: Path) -> None:
    """TCP often notices late that a connection is dead."""
    async with serving(tiny, slots=1, resume_grace_s=30.0) as live, calling(live.url) as old:
        await old.greeted()
        await old.talk(voice(4))
        async with resuming(live, old.session["resume_token"]) as new:
            await new.greeted()
            assert await old.closed() == 4409
            assert "from another connection" in old.errors[0]
            assert new.session["id"] == old.session["id"]
            await new.talk(voice(4), answers=4)
            assert live.server.desk.busy == 1
        await live.empty()
        assert live.count("duologue_sessions_total", end_reason="hang_up") == 1, "one call, one end"


async def test_two_who_show_the_same_token_do_not_both_get_the_call(tiny: Path) -> None:
    async with serving(tiny, slots=1, resume_grace_s=30.0) as live, lost_call(live) as lost:
        token = lost.session["resume_token"]
        async with resuming(live, token) as one, resuming(live, token) as other:
            await until(lambda: any((0, b"") in each.messages for each in (one, other)))
            loser = other if (0, b"") in one.messages else one
            assert await loser.closed() == 4410
            winner = one if loser is other else other
            await winner.greeted()
            await winner.talk(voice(3), answers=3)


async def test_a_parked_slot_is_given_up_when_somebody_waits(tiny: Path) -> None:
    async with serving(tiny, slots=1, max_waiting=0, resume_grace_s=30.0) as live, lost_call(live) as lost:
        async with calling(live.url) as newcomer:
            await newcomer.greeted()
            await newcomer.talk(voice(3))
            assert newcomer.session["id"] != lost.session["id"]
            assert (await _refused(live, lost.session["resume_token"]))[0] == 4410
        assert live.count("duologue_sessions_total", end_reason="lost") == 1


async def test_the_call_parked_longest_goes_first_and_no_more_than_needed(tiny: Path) -> None:
    full = serving(tiny, slots=2, resume_grace_s=30.0)
    async with full as live, calling(live.url) as first, calling(live.url) as second:
        await asyncio.gather(first.greeted(), second.greeted())
        drop(second)
        await parked(live, 1)
        drop(first)
        await parked(live, 2)
        async with calling(live.url) as newcomer:
            await newcomer.greeted()
            assert live.server.desk.parked == 1
            assert (await _refused(live, second.session["resume_token"]))[0] == 4410
            async with resuming(live, first.session["resume_token"]) as back:
                await back.greeted()


async def test_nothing_is_parked_while_somebody_waits(tiny: Path) -> None:
    async with serving(tiny, slots=1, resume_grace_s=30.0) as live, calling(live.url) as first:
        await first.greeted()
        async with calling(live.url) as waiting:
            await waiting.until(lambda: bool(waiting.notes))
            drop(first)
            await waiting.greeted()
            assert live.server.desk.parked == 0


async def test_a_neighbour_does_not_notice(tiny: Path) -> None:
    async with serving(tiny, resume_grace_s=30.0) as live, calling(live.url, "?text_seed=9") as neighbour:
        await neighbour.greeted()
        await neighbour.talk(voice(4))
        async with lost_call(live) as lost:
            await neighbour.talk(voice(4), answers=4)
            async with resuming(live, lost.session["resume_token"]) as back:
                await back.greeted()
                await asyncio.gather(back.talk(voice(4), answers=4), neighbour.talk(voice(4), answers=4))
        disturbed = neighbour.words
    async with serving(tiny) as live, calling(live.url, "?text_seed=9") as alone:
        await alone.greeted()
        await alone.talk(voice(4))
        await alone.talk(voice(4), answers=4)
        await alone.talk(voice(4), answers=4)
        await alone.until(lambda: len(alone.words) >= len(disturbed))
        assert alone.words == disturbed


async def test_a_peer_that_answers_no_ping_is_parked_and_may_come_back(tiny: Path) -> None:
    """Its connection stays open, as TCP sees it: it went into a tunnel."""
    async with serving(tiny, heartbeat_s=1.5, resume_grace_s=30.0) as live:
        reader, writer = await _upgraded_by_hand(live)
        received = b""
        while not (found := re.search(rb'"resume_token":"([^"]+)"', received)):
            received += await reader.read(4096)
        await parked(live)
        async with resuming(live, found[1].decode()) as back:
            await back.greeted()
            assert len(await back.talk(voice(3))) == 2
        writer.close()


async def test_parked_calls_do_not_hold_up_a_drain(tiny: Path) -> None:
    async with serving(tiny, resume_grace_s=30.0, drain_s=30.0) as live, lost_call(live):
        live.server.end()
        assert await asyncio.wait_for(live.running, 5) is True
        assert live.count("duologue_sessions_total", end_reason="drained") == 1


async def test_a_bad_token_is_a_bad_parameter(tiny: Path) -> None:
    async with serving(tiny, resume_grace_s=30.0) as live, resuming(live, "x" * 300) as caller:
        assert await caller.closed() == 4400
