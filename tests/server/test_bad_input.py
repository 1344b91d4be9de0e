"""What callers do wrong, what they are told, and that somebody else's call does not notice.

The neighbour talks through every misbehaviour. Its first call, alone, is the measure: the model, its seed and
Opus are deterministic, so one frame lost, doubled, late in its order or touched would change the bytes.
"""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sphn
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from websockets.asyncio.client import connect

from server.boxes import Reply
from server.config import ServerConfig
from tests.server.caller import Caller, calling, voice
from tests.server.live import LiveServer, serving, until
from tests.server.ogg import page, pages

FRAMES = 24
SEED = "?text_seed=7"


async def _alone(live: LiveServer) -> tuple[list[bytes], str]:
    async with calling(live.url, SEED) as caller:
        await caller.greeted()
        ogg = await caller.talk(voice(FRAMES))
        await caller.send(3, b"\x01")
        return ogg, caller.words


@asynccontextmanager
async def neighbour(live: LiveServer) -> AsyncIterator[Caller]:
    """A caller who talks meanwhile, in slot 0, and must hear exactly what it hears when alone.

    It has fewer answers outstanding than the smallest outbox of these tests, so a slow machine costs it nothing.
    """
    expected_ogg, expected_words = await _alone(live)
    await live.empty()
    async with calling(live.url, SEED) as caller:
        await caller.greeted()
        frames = voice(FRAMES)
        await caller.talk(frames[:8])
        rest = asyncio.create_task(caller.talk(frames[8:], answers=FRAMES - 8))
        yield caller
        assert await rest == expected_ogg
        await caller.until(lambda: len(caller.words) >= len(expected_words))
        assert caller.words == expected_words
        assert not caller.errors
        assert not [note for note in caller.notes if note.get("dropped_ms") or note.get("skipped_ms")]


def _vorbis() -> bytes:
    return page(b"\x01vorbis" + bytes(40), flags=2, sequence=0)


def _five_channels() -> bytes:
    return page(b"OpusHead" + struct.pack("<BBHIhB", 1, 5, 312, 48000, 0, 1) + bytes(7), flags=2, sequence=0)


async def _broken_later(caller: Caller) -> None:
    """A good beginning, then bytes that belong to no page."""
    await caller.say(voice(4))
    await caller.send(1, b"\x00" * 400)


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(lambda caller: caller.send(1, b"certainly not Ogg" * 9), id="junk"),
        pytest.param(lambda caller: caller.send(1, b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(80)), id="wav"),
        pytest.param(lambda caller: caller.send(1, _vorbis()), id="vorbis"),
        pytest.param(lambda caller: caller.send(1, _five_channels()), id="five-channels"),
        pytest.param(_broken_later, id="broken-later"),
    ],
)
async def test_what_is_not_ogg_opus_ends_the_call_with_a_sentence(
    tiny: Path, misbehave: Callable[[Caller], Awaitable[None]]
) -> None:
    async with serving(tiny) as live, neighbour(live), calling(live.url) as caller:
        await caller.greeted()
        await misbehave(caller)
        assert await caller.closed() == 4400
        (sentence,) = caller.errors
        assert "expected one Ogg/Opus stream" in sentence
        assert caller.socket.close_reason == sentence[: len(caller.socket.close_reason or "")]
        assert live.count("duologue_sessions_total", end_reason="bad_audio") == 1


async def test_what_is_legal_but_odd_is_ignored_and_counted(tiny: Path) -> None:
    async with serving(tiny) as live, neighbour(live), calling(live.url) as caller:
        await caller.greeted()
        for body in (
            b"",
            b"\x07\x01hello",
            b"\x08picture",
            b"\xff",
            b"\x03\x00",
            b"\x00",
            b"\x04{",
            b'\x04{"type":"?"}',
        ):
            await caller.socket.send(body)
        await caller.send(6)
        await caller.socket.send("a text frame")
        await caller.send(1)
        first, second = voice(2)
        head, sound = pages(caller.encode(first))[:2], pages(caller.encode(second))
        assert all(b"Opus" in each for each in head)
        for each in head:
            await caller.send(1, each)
            await caller.send(1)
        await caller.send(1, b"".join(sound))
        for byte in caller.encode(first):
            await caller.send(1, bytes([byte]))
        await caller.talk(voice(6), answers=7)
        assert not caller.errors
        counted = {
            kind: live.count("duologue_messages_ignored_total", kind=kind)
            for kind in ("text_frame", "empty", "kind", "metadata")
        }
        assert counted == {"text_frame": 1, "empty": 1, "kind": 6, "metadata": 2}  # one `03` is the neighbour's


async def test_a_whole_file_in_one_message(tiny: Path, tmp_path: Path) -> None:
    """As `opusenc` writes it: pages of a second, stereo, made at 48 kHz."""
    sound = voice(25, rate=48000)
    path = tmp_path / "call.opus"
    sphn.write_opus(str(path), np.concatenate(sound), 48000)
    async with serving(tiny) as live, calling(live.url) as caller:
        await caller.greeted()
        await caller.send(1, path.read_bytes())
        await caller.until(lambda: len(caller.ogg) == 24)


async def test_a_message_of_10_mb_is_refused_with_1009(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.wire._SWALLOW_S", 3.0)  # all of it has to come meanwhile, on a busy machine too
    async with serving(tiny) as live, neighbour(live), calling(live.url) as caller:
        await caller.greeted()
        await caller.send(1, bytes(10_000_000))
        assert await caller.closed() == 1009
        assert "expected at most 1048576 bytes" in caller.errors[0]
        await until(lambda: live.count("duologue_sessions_total", end_reason="too_big") == 1)


async def test_a_client_that_never_reads_loses_only_its_own_oldest_sound(tiny: Path) -> None:
    settings: dict[str, Any] = {"inbox_ms": 60_000, "outbox_ms": 320, "send_buffer_bytes": 4096}
    async with serving(tiny, **settings, stats_interval_s=0.01) as live, neighbour(live):
        narrow = await asyncio.to_thread(_narrow_connection, live)
        async with connect(
            f"ws{live.url[4:]}/api/chat", sock=narrow, compression=None, max_queue=1, ping_interval=None
        ) as deaf:
            await until(lambda: len(live.server.desk.views()) == 2)  # what comes before the slot is not heard
            encoder = sphn.OpusStreamWriter(24000)
            frames = voice(110)
            await deaf.send(b"\x01" + b"".join(encoder.append_pcm(frame) for frame in frames))
            await until(lambda: live.server.desk.views()[-1].heard_frames == len(frames))
            view = live.server.desk.views()[-1]
            assert view.dropped_ms > 0
            assert view.lag_ms <= 320, "what waits is bounded"
            in_hand = 1
            assert view.sent_frames + view.dropped_ms // 80 + view.lag_ms // 80 + in_hand >= len(frames) - 1
            caller = Caller(deaf)
            await caller.until(lambda: view.dropped_ms in [note.get("dropped_ms") for note in caller.notes])
            assert caller.notes[-1]["skipped_ms"] == 0
            before = len(caller.ogg)
            await caller.send(1, encoder.append_pcm(frames[0]))
            await caller.until(lambda: len(caller.ogg) > before)
            stream = pages(b"".join(caller.ogg))
            assert [struct.unpack_from("<I", each, 18)[0] for each in stream] == list(range(len(stream)))
            await caller.hang_up()


async def test_a_loss_is_told_even_if_nothing_comes_after_it(tiny: Path) -> None:
    """A caller who has heard the last reply hangs up within seconds, and counts what it was told."""
    async with serving(tiny, outbox_ms=320, keepalive_s=8.0, stats_interval_s=0.5) as live, calling(live.url) as caller:
        await caller.greeted()
        for _ in range(2):  # the second comes too soon after the first was told
            lost_ms = _lose_some(live)
            async with asyncio.timeout(3):
                await caller.until(lambda lost_ms=lost_ms: lost_ms in [note.get("dropped_ms") for note in caller.notes])
        assert (6, b"") not in caller.messages, "news are a sign of life, too"


def _lose_some(live: LiveServer) -> int:
    """Answer the only caller faster than any socket takes it. Returns the milliseconds lost in all."""
    (call,) = live.server.desk._calls
    session, now = call.session, time.monotonic()
    for _ in range(10):
        reply = Reply(sound=(b"packet",), token=3, heard_at=now, due_at=now, began_at=now, stepped_at=now)
        session.take_reply(reply, session.encoder)
    assert session.outbox.dropped
    return session.outbox.dropped * 80


def _narrow_connection(live: LiveServer) -> socket.socket:
    """Few bytes fit on their way here. Loopback's own segments are larger than such a window: hence the size."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    narrow.connect(("127.0.0.1", int(live.url.rsplit(":", 1)[1])))
    return narrow


async def test_a_client_that_sends_faster_than_it_may_is_skipped_and_told(tiny: Path) -> None:
    async with serving(tiny, max_speed=1.0, inbox_ms=400, stats_interval_s=0.01) as live, calling(live.url) as caller:
        await caller.greeted()
        for frame in voice(60):
            await caller.send(1, caller.encode(frame))
        await caller.until(lambda: any(note.get("skipped_ms") for note in caller.notes))
        await until(lambda: live.count("duologue_frames_total", result="skipped") > 20)
        (view,) = live.server.desk.views()
        assert view.lag_ms <= 400 + 400
        assert view.skipped_ms == 80 * live.count("duologue_frames_total", result="skipped")


async def test_a_client_that_vanishes_is_noticed(tiny: Path) -> None:
    """It neither closes nor answers pings; its connection stays open."""
    async with serving(tiny, heartbeat_s=1.5) as live, neighbour(live):
        reader, writer = await _upgraded_by_hand(live)
        assert (await reader.readexactly(3))[2:] == b"\x00", "the handshake, and then silence"
        await until(lambda: live.count("duologue_sessions_total", end_reason="lost") == 1)
        writer.close()


async def test_a_client_whose_connection_breaks_is_noticed(tiny: Path) -> None:
    async with serving(tiny) as live, neighbour(live):
        reader, writer = await _upgraded_by_hand(live)
        await reader.readexactly(3)
        tcp: socket.socket = writer.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()  # a reset, without a close frame
        await until(lambda: live.count("duologue_sessions_total", end_reason="lost") == 1)


@pytest.mark.parametrize("moment", ["before the answer", "after the answer"])
async def test_a_client_that_resets_right_after_its_request_is_not_served(
    tiny: Path, moment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    callers: list[asyncio.StreamWriter] = []
    untouched = web.WebSocketResponse.prepare

    async def lose_the_caller(request: web.BaseRequest) -> None:
        callers.pop().transport.abort()
        await until(lambda: request.transport is None)

    async def prepare(response: web.WebSocketResponse, request: web.BaseRequest) -> AbstractStreamWriter:
        if moment == "before the answer":
            await lose_the_caller(request)
        writer = await untouched(response, request)
        if moment == "after the answer":
            await lose_the_caller(request)
        return writer

    async with serving(tiny) as live:
        monkeypatch.setattr(web.WebSocketResponse, "prepare", prepare)
        _, writer = await _asked_by_hand(live)
        callers.append(writer)
        await until(lambda: not callers)
        await asyncio.sleep(0.05)
        await live.empty()
        assert not any(_samples(live, "duologue_sessions_total")), "no call began"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def _samples(live: LiveServer, name: str) -> list[float]:
    families = live.server.metrics.registry.collect()
    return [sample.value for family in families for sample in family.samples if sample.name == name]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "hang_up"),
        (b"\x03\xe8", "hang_up"),
        (b"\x03\xe9bye", "hang_up"),
        (b"\x03\xea", "lost"),
        (b"\x03\xf3", "lost"),
        (b"\x0f\xa0", "lost"),
    ],
    ids=["none", "1000", "1001", "1002", "1011", "4000"],
)
async def test_a_close_frame_is_a_hang_up_only_if_it_says_so(tiny: Path, body: bytes, reason: str) -> None:
    async with serving(tiny) as live:
        reader, writer = await _upgraded_by_hand(live)
        await reader.readexactly(3)
        writer.write(bytes([0x88, 0x80 | len(body)]) + bytes(4) + body)
        await until(lambda: live.count("duologue_sessions_total", end_reason=reason) == 1)
        writer.close()


def test_every_setting_notices_a_dead_peer_within_20_s() -> None:
    """aiohttp rounds waits beyond 5 s up to whole seconds, and gives half the interval for the answer."""
    for interval in (ServerConfig().heartbeat_s, 12.0):
        assert (interval + 1) + (interval / 2 + 1) <= 20


async def _asked_by_hand(live: LiveServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = live.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    writer.write(
        f"GET /api/chat HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return reader, writer


async def _upgraded_by_hand(live: LiveServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await _asked_by_hand(live)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    return reader, writer


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("text_temperature=hot", "text_temperature"),
        ("text_temperature=-1", "text_temperature"),
        ("audio_temperature=nan", "audio_temperature"),
        ("text_topk=2.5", "text_topk"),
        ("audio_topk=-3", "audio_topk"),
        ("pad_mult=inf", "pad_mult"),
        ("text_seed=-1", "text_seed"),
        ("audio_seed=99999999999999999999", "audio_seed"),
        ("repetition_penalty=0", "repetition_penalty"),
        ("repetition_penalty_context=100000", "repetition_penalty_context"),
        ("consent=everything", "consent"),
        ("consent=x" + "é" * 79, "consent"),
        ("resume_token=", "resume_token"),
        ("resume_token=" + "x" * 300, "resume_token"),
    ],
)
async def test_bad_parameters_are_named(shared: LiveServer, query: str, name: str) -> None:
    async with calling(shared.url, "?" + query) as caller:
        assert await caller.closed() == 4400
        (sentence,) = caller.errors
        assert sentence.startswith(f"got {name} = "), sentence
        assert "; expected " in sentence
        assert [kind for kind, _ in caller.messages] == [5], "and no handshake"


async def test_a_page_without_an_upgrade_is_told_so(shared: LiveServer) -> None:
    status, _ = await shared.get("/api/chat")
    assert status == 400


async def test_many_calls_leave_nothing(tiny: Path) -> None:
    """Good and bad calls in turn: `serving` looks at tasks, slots, threads and sessions in memory afterwards."""
    async with serving(tiny, slots=3) as live:
        handles = _open_files()
        for turn in range(12):
            async with calling(live.url) as good, calling(live.url) as bad:
                await asyncio.gather(good.greeted(), bad.greeted())
                await bad.send(1, b"junk" * 10)
                await good.talk(voice(2, seed=turn))
                assert await bad.closed() == 4400
        await live.empty()
        assert live.count("duologue_sessions_total", end_reason="hang_up") == 12
        assert live.count("duologue_sessions_total", end_reason="bad_audio") == 12
        await until(lambda: _open_files() <= handles)


def _open_files() -> int:
    """Count this process's open files and sockets, where the system shows them."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").is_dir() else 0
