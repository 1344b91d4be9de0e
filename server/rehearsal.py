"""What one caller costs beside the engine: a short call through the real parts, before anybody calls.

Socket, messages, Opus and queues are those of a call; in place of the model an echo answers at once. What it costs to
hear both sides (`signals`) is taken apart from that. Runs on an event loop of its own, in the thread that asks.
"""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import numpy as np
from aiohttp import web

from server import protocol
from server.boxes import Reply
from server.config import ServerConfig
from server.metrics import Metrics
from server.ogg import OggWriter
from server.parameters import CallParameters
from server.session import ModelInfo, Session
from server.signals import DEFAULT, Board, RowFrame
from server.signals.echo import EchoGuard
from server.signals.vad import SAMPLE_RATE_HZ
from server.sound import PACKET_MS, SoundEncoder
from server.wire import ChatSocket

__all__ = ["CallerCost", "rehearse"]

_FRAMES: Final = 40
_WARM_UP: Final = 8
_LISTENED: Final = 4
"""Rows that are heard together: more share a call of the network, and cost less each."""
_LISTENED_FRAMES: Final = 12
_LOOKS_FOR_ECHO: Final = 0.25
"""Share of frames in which a caller speaks while, or just after, the model does."""
_REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: rehearsal\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_BINARY: Final = 0x82
_MASKED_16_BIT: Final = 0x80 | 126
_SLOW_S: Final = 10.0


class CallerCost(msgspec.Struct, frozen=True, kw_only=True):
    """Processor seconds that one caller's frame takes beside the engine's step."""

    loop_s: float
    """On the event loop: socket, decoding, queues, messages. A little too much: the peer's half is in it."""
    encode_s: float
    """In the encoding thread, without the interpreter's lock."""
    listen_s: float = 0.0
    """In the listening thread, which nobody waits for, but which must keep up."""


def rehearse(model: ModelInfo, frames: int = _FRAMES) -> CallerCost:
    """Send so many frames of noise through a call of our own and take the time. Blocks; not for an event loop."""
    return asyncio.run(_rehearse(model, frames))


async def _rehearse(model: ModelInfo, frames: int) -> CallerCost:
    echo = _Echo(model)
    messages = _noise(model, _WARM_UP + frames)
    async with asyncio.timeout(_SLOW_S), _connected(echo) as peer:
        loop = asyncio.get_running_loop()
        began = 0.0
        for count, message in enumerate(messages):
            if count == _WARM_UP:
                began, echo.encode_s = time.thread_time(), 0.0
            await loop.sock_sendall(peer, message)
            await echo.answered(count + 1)
            await loop.sock_recv(peer, 65_536)
        spent_s = time.thread_time() - began - echo.encode_s
    return CallerCost(loop_s=spent_s / frames, encode_s=echo.encode_s / frames, listen_s=_listen(model))


def _listen(model: ModelInfo) -> float:
    """Seconds of a row's frame in company: no line is ever silent, and every fourth frame may be echo."""
    board = Board(_LISTENED, sample_rate=model.sample_rate, frame_s=model.frame_s)
    guard = EchoGuard(reach_s=DEFAULT.echo_reach_s)
    source, size = np.random.default_rng(0), round(SAMPLE_RATE_HZ * model.frame_s)
    for row in range(_LISTENED):
        board.open(row)
    spent_s = 0.0
    for count in range(_WARM_UP + _LISTENED_FRAMES):
        sound = 0.1 * source.standard_normal((2, model.frame_size)).astype(np.float32)
        guard.feed(sound[0, :size], sound[1, :size])
        frames = {row: RowFrame(heard=sound[0], said=sound[1], word=count % 4 == 0) for row in range(_LISTENED)}
        began = time.thread_time()
        board.hear(frames)
        heard = time.thread_time()
        guard.share()
        if count >= _WARM_UP:
            spent_s += (heard - began) / _LISTENED + _LOOKS_FOR_ECHO * (time.thread_time() - heard)
    return spent_s / _LISTENED_FRAMES


class _Echo:
    """A session whose model says what it hears, at once."""

    def __init__(self, model: ModelInfo) -> None:
        self.encode_s = 0.0
        self._config = ServerConfig(max_speed=1e6)
        self._answers = 0
        self._news = asyncio.Event()
        self._session = Session(
            model=model,
            parameters=CallParameters(sampling=model.recommended_sampling),
            config=self._config,
            metrics=Metrics(),
            on_frame=self._answer,
        )

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Handle the only request."""
        wire = ChatSocket(self._config)
        await wire.open(request)
        self._session.start(0)
        speaking = asyncio.create_task(self._session.speak(wire, resume_token=None))
        try:
            await self._session.listen(wire)
        finally:
            speaking.cancel()
            await asyncio.wait((speaking,))
        return wire.response

    async def answered(self, count: int) -> None:
        """Wait until so many frames have been answered."""
        while self._answers < count:
            self._news.clear()
            await self._news.wait()

    def _answer(self) -> None:
        now, session = time.monotonic(), self._session
        assert session.encoder is not None, "the call has its socket"
        while (frame := session.inbox.take(now)) is not None:
            began = time.thread_time()
            sound = session.encoder.encode(frame.pcm)
            self.encode_s += time.thread_time() - began
            reply = Reply(sound=sound, token=-1, heard_at=frame.at, due_at=frame.due_at, began_at=now, stepped_at=now)
            session.take_reply(reply, session.encoder)
            self._answers += 1
        self._news.set()


@asynccontextmanager
async def _connected(echo: _Echo) -> AsyncIterator[socket.socket]:
    """Give the caller's end of a socket that leads to the echo."""
    app = web.Application()
    app.router.add_get("/", echo.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    ours, peer = socket.socketpair()
    loop = asyncio.get_running_loop()
    peer.setblocking(False)
    try:
        assert runner.server is not None, "it has just been set up"
        await loop.connect_accepted_socket(runner.server, ours)
        await loop.sock_sendall(peer, _REQUEST)
        while b'"type":"session"' not in (received := await loop.sock_recv(peer, 65_536)):
            if not received:
                raise ConnectionError("the rehearsal's call was not answered; the log says why")
        yield peer
    finally:
        peer.close()
        await runner.cleanup()


def _noise(model: ModelInfo, frames: int) -> list[bytes]:
    """Ready-made WebSocket messages, one frame of sound each; masked with zeros, as a client must."""
    encoder, source = SoundEncoder(sample_rate=model.sample_rate), np.random.default_rng(0)
    ogg = OggWriter(head=encoder.head, packet_ms=PACKET_MS)
    sound = 0.1 * source.standard_normal((frames, model.frame_size)).astype(np.float32)
    return [_masked(protocol.audio(ogg.write(encoder.encode(frame)))) for frame in sound]


def _masked(message: bytes) -> bytes:
    return struct.pack(">BBHI", _BINARY, _MASKED_16_BIT, len(message), 0) + message
