"""A caller written from the protocol's description alone: `websockets`, Opus, and nothing of ours."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import sphn
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Samples = NDArray[np.float32]

FRAME = 1920
RATE = 24000


def voice(frames: int, *, seed: int = 0, rate: int = RATE) -> list[Samples]:
    """Something that sounds: a wandering tone with noise, in frames of 80 ms."""
    length = rate * 2 // 25
    time = np.arange(frames * length) / rate
    tone = 0.3 * np.sin(2 * math.pi * (200 + 40 * np.sin(3 * time + seed)) * time)
    noise = 0.05 * np.random.default_rng(seed).standard_normal(time.size)
    sound = (tone + noise).astype(np.float32)
    return [sound[i * length : (i + 1) * length] for i in range(frames)]


class Caller:
    """One connection. Everything received is kept in `messages`, as kind and body."""

    def __init__(self, socket: ClientConnection, *, rate: int = RATE) -> None:
        self.socket = socket
        self.messages: list[tuple[int, bytes]] = []
        self._news = asyncio.Event()
        self._encoder = sphn.OpusStreamWriter(rate)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                assert isinstance(message, bytes), "the server never sends text frames"
                assert message, "the server never sends empty messages"
                assert message[0] < 8, "the stock page throws on kinds from 8 on"
                self.messages.append((message[0], message[1:]))
                self._news.set()
        except ConnectionClosed:
            pass
        finally:
            self._news.set()

    def bodies(self, kind: int) -> list[bytes]:
        return [body for each, body in self.messages if each == kind]

    @property
    def ogg(self) -> list[bytes]:
        """The audio messages' bodies: one reply frame each."""
        return self.bodies(1)

    @property
    def words(self) -> str:
        return b"".join(self.bodies(2)).decode()

    @property
    def notes(self) -> list[dict[str, Any]]:
        """The metadata messages."""
        return [json.loads(body) for body in self.bodies(4)]

    @property
    def errors(self) -> list[str]:
        return [body.decode() for body in self.bodies(5)]

    @property
    def session(self) -> dict[str, Any]:
        return next(note for note in self.notes if note["type"] == "session")

    async def until(self, reached: Any) -> None:
        """Wait until `reached()` is true; fails when the connection ends before."""
        while not reached():
            assert not self._reading.done(), f"the connection ended early: {self.messages[-3:]}"
            self._news.clear()
            if not self._reading.done():
                await self._news.wait()

    async def greeted(self) -> None:
        await self.until(lambda: (0, b"") in self.messages and any(n["type"] == "session" for n in self.notes))

    async def send(self, kind: int, body: bytes = b"") -> None:
        await self.socket.send(bytes([kind]) + body)

    def encode(self, samples: Samples) -> bytes:
        return bytes(self._encoder.append_pcm(samples))

    async def say(self, frames: Iterable[Samples], *, ahead: int = 3) -> None:
        """Send frames as fast as they are answered, with at most `ahead` answers outstanding."""
        first = len(self.ogg)
        for count, frame in enumerate(frames):
            await self.send(1, self.encode(frame))
            await self.until(lambda count=count: len(self.ogg) - first >= count + 1 - ahead)

    async def talk(self, frames: list[Samples], *, answers: int | None = None) -> list[bytes]:
        """Say it all and wait for every answer. The first frame of a call has none: the model is a frame behind."""
        expected = len(self.ogg) + (len(frames) - 1 if answers is None else answers)
        await self.say(frames)
        await self.until(lambda: len(self.ogg) >= expected)
        return self.ogg

    async def closed(self) -> int:
        """Wait for the end and give the close code."""
        await self._reading
        await self.socket.wait_closed()
        assert self.socket.close_code is not None
        return self.socket.close_code

    async def hang_up(self) -> None:
        await self.socket.close()
        await self._reading


@asynccontextmanager
async def calling(url: str, query: str = "", *, rate: int = RATE, **options: Any) -> AsyncIterator[Caller]:
    """Call; hang up at the end if that has not happened."""
    async with connect(f"ws{url[4:]}/api/chat{query}", compression=None, **options) as socket:
        caller = Caller(socket, rate=rate)
        yield caller
        await caller.hang_up()
