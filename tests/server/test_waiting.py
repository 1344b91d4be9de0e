"""Callers beyond the slots: the queue, what keeps them alive, and what they said meanwhile."""

from pathlib import Path

from tests.server.caller import Caller, calling, voice
from tests.server.live import serving, until


def _positions(caller: Caller) -> list[int]:
    """The places told so far, without repetitions."""
    return list(dict.fromkeys(note["position"] for note in caller.notes if note["type"] == "queue"))


async def test_a_second_caller_waits_and_is_then_served(tiny: Path) -> None:
    async with serving(tiny, slots=1, keepalive_s=0.05) as live, calling(live.url) as first:
        await first.greeted()
        await first.talk(voice(3))
        async with calling(live.url) as second:
            await second.until(lambda: second.messages.count((6, b"")) >= 3)
            assert _positions(second) == [1]
            assert all(note["eta_s"] is None for note in second.notes), "no call has ended yet: nobody knows"
            assert (0, b"") not in second.messages, "the handshake says that a slot is ready"
            assert live.count("duologue_sessions_waiting") == 1
            await first.talk(voice(3), answers=3)
            await first.hang_up()
            await second.greeted()
            kinds = [kind for kind, _ in second.messages]
            assert set(kinds[: kinds.index(0)]) == {4, 6}
            assert kinds[kinds.index(0) + 1] == 4
            await second.talk(voice(3))


async def test_a_waiting_caller_is_told_how_long_from_the_calls_that_have_ended(tiny: Path) -> None:
    async with serving(tiny, slots=1) as live:
        for _ in range(3):
            async with calling(live.url) as caller:
                await caller.greeted()
                await caller.talk(voice(2))
            await live.empty()
        async with calling(live.url) as first:
            await first.greeted()
            async with calling(live.url) as second:
                await second.until(lambda: bool(second.notes))
                assert 0 <= second.notes[0]["eta_s"] < 60


async def test_what_a_waiting_caller_said_is_forgotten_but_its_stream_goes_on(tiny: Path) -> None:
    async with serving(tiny, slots=1) as live, calling(live.url) as first:
        await first.greeted()
        async with calling(live.url) as second:
            await second.until(lambda: bool(_positions(second)))
            for frame in voice(30):
                await second.send(1, second.encode(frame))
            await second.send(1, second.encode(voice(1)[0][:960]))  # and half a frame, which must not be glued on
            await second.send(3)
            await until(lambda: live.count("duologue_messages_ignored_total", kind="kind") == 1)  # all has been read
            await first.hang_up()
            await second.greeted()
            await second.talk(voice(4))
            assert live.server.desk.views()[0].heard_frames == 4


async def test_positions_move_up_and_who_leaves_the_queue_frees_a_place(tiny: Path) -> None:
    async with serving(tiny, slots=1, max_waiting=2) as live, calling(live.url) as first:
        await first.greeted()
        async with calling(live.url) as second, calling(live.url) as third:
            await second.until(lambda: bool(_positions(second)))
            await third.until(lambda: bool(_positions(third)))
            assert (_positions(second), _positions(third)) == ([1], [2])
            async with calling(live.url) as fourth:
                assert await fourth.closed() == 4429
                (sentence,) = fourth.errors
                assert "while 1 are served and 2 wait" in sentence
                assert [kind for kind, _ in fourth.messages] == [5]
            await second.hang_up()
            await third.until(lambda: _positions(third) == [2, 1])
            async with calling(live.url) as fifth:
                await fifth.until(lambda: _positions(fifth) == [2])
                await first.hang_up()
                await third.greeted()
                await fifth.until(lambda: _positions(fifth) == [2, 1])
        assert live.count("duologue_admission_rejected_total", reason="full") == 1
        await until(lambda: live.count("duologue_admission_rejected_total", reason="left") == 2)


async def test_bad_audio_while_waiting_is_refused_at_once(tiny: Path) -> None:
    async with serving(tiny, slots=1) as live, calling(live.url) as first:
        await first.greeted()
        async with calling(live.url) as second:
            await second.send(1, b"junk" * 10)
            assert await second.closed() == 4400
        assert live.count("duologue_admission_rejected_total", reason="bad_audio") == 1
        await first.talk(voice(2))


async def test_no_queue_when_none_is_wanted(tiny: Path) -> None:
    async with serving(tiny, slots=1, max_waiting=0) as live, calling(live.url) as first:
        await first.greeted()
        async with calling(live.url) as second:
            assert await second.closed() == 4429
