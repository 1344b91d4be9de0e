"""The inbox and the outbox: bounds, order, pace, and what is said of what was thrown away."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.boxes import HeardFrame, Inbox, Outbox, Reply, Throttle

FRAME_S = 0.08


def heard(number: int) -> HeardFrame:
    return HeardFrame(pcm=np.full(4, number, np.float32), at=float(number))


def reply(number: int, *, sound: bool = True) -> Reply:
    packets = (b"packet",) if sound else ()
    return Reply(sound=packets, token=number, heard_at=0.0, due_at=0.0, began_at=0.0, stepped_at=0.0)


@given(moves=st.lists(st.sampled_from(["put", "take"]), max_size=200), limit=st.integers(2, 30))
def test_an_inbox_keeps_order_and_bound_and_counts_every_loss(moves: list[str], limit: int) -> None:
    inbox = Inbox(limit=limit, max_speed=1e9, frame_s=FRAME_S)
    came = went = lost = 0
    last = -1.0
    for tick, move in enumerate(moves):
        if move == "put":
            lost += inbox.put(heard(came))
            came += 1
        elif (frame := inbox.take(tick + 1.0)) is not None:
            assert frame.at > last
            last = frame.at
            went += 1
        assert len(inbox) <= limit
        assert came == went + lost + len(inbox)
        assert inbox.skipped == lost


def test_a_full_inbox_goes_on_near_the_present() -> None:
    inbox = Inbox(limit=8, max_speed=1e9, frame_s=FRAME_S)
    assert [inbox.put(heard(number)) for number in range(9)] == [0] * 8 + [7]
    assert [frame.at for _ in range(3) if (frame := inbox.take(1.0)) is not None] == [7.0, 8.0]


@given(st.floats(1.0, 8.0), st.lists(st.floats(0.0, 0.3), min_size=1, max_size=80))
def test_nobody_is_served_faster_than_allowed(max_speed: float, pauses: list[float]) -> None:
    inbox = Inbox(limit=10_000, max_speed=max_speed, frame_s=FRAME_S)
    for number in range(2000):
        inbox.put(heard(number))
    begin = now = 100.0
    taken, wait = 0, None
    for pause in pauses:
        now += pause
        while inbox.take(now) is not None:
            taken += 1
        assert taken <= 4 + (now - begin) * max_speed / FRAME_S + 1e-6
        wait = inbox.wait_s(now)
        assert wait is not None
        assert 0 < wait <= FRAME_S / max_speed + 1e-9
    assert wait is not None
    assert inbox.take(now + wait + 1e-6) is not None


def test_real_time_is_always_allowed() -> None:
    inbox = Inbox(limit=10, max_speed=1.0, frame_s=FRAME_S)
    for number in range(200):
        inbox.put(heard(number))
        assert inbox.take(50 + number * FRAME_S) is not None
    assert inbox.wait_s(1000.0) is None


def test_a_frame_is_due_when_it_is_there_its_caller_may_and_the_one_before_is_taken() -> None:
    """What it waits after that is the server's doing."""
    inbox = Inbox(limit=50, max_speed=1.0, frame_s=FRAME_S)
    for _ in range(6):
        inbox.put(HeardFrame(pcm=np.zeros(4, np.float32), at=100.0))
    due: list[tuple[float, float]] = []
    now = 100.01
    while len(due) < 6:
        if (frame := inbox.take(now)) is not None:
            due.append((round(frame.due_at, 3), now))
        now = round(now + 0.01, 3)
    burst, paced = due[:4], due[4:]
    assert burst == [(100.0, 100.01), (100.01, 100.02), (100.02, 100.03), (100.03, 100.04)]
    assert paced == [(100.09, 100.1), (100.17, 100.18)], "a flood waits for itself"


def test_a_frame_that_the_server_lets_wait_is_overdue() -> None:
    inbox = Inbox(limit=50, max_speed=1.0, frame_s=FRAME_S)
    for number in range(10):
        inbox.put(HeardFrame(pcm=np.zeros(4, np.float32), at=100.0 + number * FRAME_S))
    now = 100.0
    for _ in range(8):
        now += 0.12
        frame = inbox.take(now)
        assert frame is not None
        assert now - frame.due_at >= 0.119


@given(st.floats(1.0, 8.0), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 512)), min_size=1, max_size=200))
def test_nobody_is_decoded_faster_than_four_times_that(max_speed: float, pieces: list[tuple[int, int]]) -> None:
    throttle, rate_hz = Throttle(max_speed=max_speed, frame_s=FRAME_S), 4 * max_speed / FRAME_S
    begin = now = 100.0
    work = 0.0
    for frames, size in pieces:
        work += frames + size / 4096
        now += throttle.spend(frames, size, now)
        assert work <= 100 + rate_hz * (now - begin) + 1e-6
    assert now - begin <= max(0.0, work - 100) / rate_hz + 1e-6, "and nobody waits who need not"


def test_two_threads_lose_nothing_unaccounted() -> None:
    inbox = Inbox(limit=50, max_speed=1e9, frame_s=FRAME_S)
    total = 20_000
    filler = threading.Thread(target=lambda: [inbox.put(heard(number)) for number in range(total)])
    filler.start()
    seen: list[float] = []
    tick = 1.0
    while filler.is_alive() or len(inbox):
        tick += 1.0
        if (frame := inbox.take(tick)) is not None:
            seen.append(frame.at)
    filler.join()
    assert seen == sorted(seen)
    assert len(seen) + inbox.skipped == total


async def drain(outbox: Outbox) -> list[Reply]:
    out = []
    while (one := await outbox.get(0.001)) is not None:
        out.append(one)
    return out


@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_an_outbox_drops_the_oldest_sound_and_keeps_the_text(limit: int) -> None:
    outbox = Outbox(limit=limit)
    lost = [outbox.put(reply(number)) for number in range(10)]
    assert len(outbox) == limit
    assert sum(lost) == outbox.dropped == 10 - limit
    out = await drain(outbox)
    assert [one.token for one in out] == list(range(10)), "every piece of text, in order"
    assert [one.token for one in out if one.sound] == list(range(10 - limit, 10)), "the newest sound"
    assert len(outbox) == 0


@given(
    moves=st.lists(st.sampled_from(["sound", "text", "get", "get", "sound", "mute"]), max_size=200),
    limit=st.integers(1, 5),
    often=st.integers(1, 20),
)
async def test_an_outbox_is_a_list_with_the_oldest_sound_dropped(moves: list[str], limit: int, often: int) -> None:
    """Compared with a plain list that is searched from its beginning every time."""
    outbox, plain, sounding = Outbox(limit=limit), list[list[int | bool]](), 0
    for number, move in enumerate(moves * often):
        if move == "mute":
            assert outbox.mute() == sounding
            plain, sounding = [[token, False] for token, _ in plain], 0
        elif move != "get":
            outbox.put(reply(number, sound=move == "sound"))
            plain.append([number, move == "sound"])
            sounding += move == "sound"
            if sounding > limit:
                next(each for each in plain if each[1])[1] = False
                sounding -= 1
        elif plain:
            one = await outbox.get(1)
            assert one is not None
            assert [one.token, bool(one.sound)] == plain.pop(0)
            sounding -= bool(one.sound)
        assert len(outbox) == sounding


def test_who_does_not_read_for_long_costs_no_more_than_who_just_began() -> None:
    outbox = Outbox(limit=1)
    began = time.thread_time()
    for number in range(30_000):
        outbox.put(reply(number))
    assert time.thread_time() - began < 1.0, "a search through 4,096 replies each time takes several"


async def test_frames_without_sound_take_no_room_but_are_bounded() -> None:
    outbox = Outbox(limit=2)
    for number in range(5000):
        assert outbox.put(reply(number, sound=number >= 4998)) == 0
    out = await drain(outbox)
    assert [one.token for one in out] == list(range(5000 - 4096, 5000))


async def test_waiting_ends_by_time_and_by_a_reply() -> None:
    outbox = Outbox(limit=2)
    assert await outbox.get(0.001) is None
    waiting = asyncio.create_task(outbox.get(30))
    await asyncio.sleep(0)
    outbox.put(reply(5))
    assert (await waiting) is not None
