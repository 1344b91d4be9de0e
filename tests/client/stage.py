"""A server that plays a script: what the other side of a call does, written from the protocol's bytes alone.

Nothing of ours is imported. A script is a coroutine over a `Stage`; it may send anything, in any order.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import sphn
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Samples = NDArray[np.float32]
RATE = 24000
FRAME = 1920


class Stage:
    """One call, seen from the server."""

    def __init__(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.path = socket.request.path
        self.headers = socket.request.headers
        self._socket = socket
        self._encoder = sphn.OpusStreamWriter(RATE)
        self._decoder = sphn.OpusStreamReader(RATE)

    async def send(self, kind: int, body: bytes = b"") -> None:
        await self._socket.send(bytes([kind]) + body)

    async def send_raw(self, message: bytes | str) -> None:
        await self._socket.send(message)

    async def ready(self, **session: Any) -> None:
        """Send the handshake, and the session's metadata if there are any fields for it."""
        await self.send(0)
        if session:
            await self.note({"type": "session", "id": "s", "max_speed": 1.0} | session)

    async def note(self, message: dict[str, Any]) -> None:
        await self.send(4, json.dumps(message).encode())

    async def hear(self) -> Samples:
        """Wait for the next message of sound and decode it."""
        while True:
            message = await self._socket.recv()
            assert isinstance(message, bytes), "the client sends no text frames"
            if message[0] == 1:
                return np.asarray(self._decoder.append_bytes(message[1:]), np.float32)

    async def speak(self, frame: Samples) -> None:
        await self.send(1, bytes(self._encoder.append_pcm(frame)))

    async def close(self, code: int, reason: str = "") -> None:
        await self._socket.close(code, reason)

    def vanish(self) -> None:
        """Cut the wire: no closing frame, no goodbye."""
        self._socket.transport.abort()

    async def gone(self) -> int | None:
        """Wait until the client has hung up; gives its close code."""
        await self._socket.wait_closed()
        return self._socket.close_code


Script = Callable[[Stage], Awaitable[None]]


@asynccontextmanager
async def staged(script: Script) -> AsyncIterator[str]:
    """Serve `script` to every caller, and fail with what it raised. Gives the `ws://` address."""
    problems: list[BaseException] = []

    async def handle(socket: ServerConnection) -> None:
        try:
            await script(Stage(socket))
        except (ConnectionClosed, asyncio.CancelledError):
            pass
        except BaseException as problem:  # noqa: BLE001 - shown to the test below
            problems.append(problem)

    async with serve(handle, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"
    if problems:
        raise problems[0]


def answering(reply: Callable[[int], Samples], *, delay: int = 1, **session: Any) -> Script:
    """A model that says `reply(n)` in its frame n, `delay` frames after it heard the caller's frame n."""

    async def script(stage: Stage) -> None:
        await stage.ready(**session)
        heard = np.zeros(0, np.float32)
        count = 0
        while True:
            heard = np.concatenate([heard, await stage.hear()])
            while len(heard) >= FRAME:
                heard = heard[FRAME:]
                if count >= delay:
                    await stage.speak(reply(count - delay))
                count += 1

    return script


def silence(_: int = 0) -> Samples:
    return np.zeros(FRAME, np.float32)
