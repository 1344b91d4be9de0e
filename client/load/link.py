"""One caller's WebSocket, driven by callbacks: no task wakes up for a message, and its arrival is known to the moment.

The protocol itself is the `websockets` package's. This file knows bytes and how a connection can end.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from client.credentials import Credentials
from client.printable import printable

__all__ = ["Ending", "LoadLink", "open_load_link"]

_CONNECT_S: Final = 10.0
_CLOSE_S: Final = 2.0
_MOST_BYTES: Final = 1 << 20


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How the other side ended a connection. `code` is None when it broke without a word."""

    code: int | None
    sentence: str


class LoadLink(asyncio.Protocol):
    """An open WebSocket. `on_message` gets every binary message, in its callback."""

    def __init__(self, url: str, headers: Mapping[str, str], on_message: Callable[[bytes], None]) -> None:
        self._protocol = ClientProtocol(parse_uri(url), max_size=_MOST_BYTES)
        self._headers = headers
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self.upgraded: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Ending] = loop.create_future()

    def send(self, message: bytes) -> None:
        """Hand a binary message to the kernel; nothing once the connection is closing."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(message)
            self._flush()

    async def hang_up(self) -> None:
        """Close as one does after a conversation."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._flush()
            await asyncio.wait([self.ended], timeout=_CLOSE_S)
        self.vanish()

    def vanish(self) -> None:
        """Cut the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        assert isinstance(transport, asyncio.Transport), "TCP"
        self._transport = transport
        request = self._protocol.connect()
        request.headers.update(self._headers)
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        self._protocol.receive_data(data)
        self._take()

    def eof_received(self) -> None:
        """Read what is left."""
        self._protocol.receive_eof()
        self._take()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say how it ended."""
        ending = self._ending(exc)
        if not self.ended.done():
            self.ended.set_result(ending)
        if not self.upgraded.done():
            self.upgraded.set_exception(ConnectionError(ending.sentence))

    def _ending(self, problem: Exception | None) -> Ending:
        refused, closed = self._protocol.handshake_exc, self._protocol.close_rcvd
        if isinstance(refused, InvalidStatus):
            status = refused.response.status_code
            return Ending(code=status, sentence=f"HTTP {status} instead of an upgrade")
        if closed is not None:
            return Ending(code=closed.code, sentence=printable(closed.reason))
        return Ending(code=None, sentence=str(problem or refused or "the connection broke"))

    def _take(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                if event.opcode is Opcode.BINARY:
                    self._on_message(bytes(event.data))
            elif isinstance(event, Response) and self._protocol.handshake_exc is None and not self.upgraded.done():
                self.upgraded.set_result(None)  # its close frame may have come at once, too
        self._flush()

    def _flush(self) -> None:
        assert self._transport is not None, "connection_made comes first"
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()


async def open_load_link(url: str, *, credentials: Credentials, on_message: Callable[[bytes], None]) -> LoadLink:
    """Connect to a complete `ws://` address and upgrade. Raises ConnectionError or TimeoutError."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_S):
        _, link = await loop.create_connection(
            lambda: LoadLink(url, credentials.headers, on_message),
            parts.hostname or "",
            parts.port or (443 if parts.scheme == "wss" else 80),
            ssl=(credentials.tls or True) if parts.scheme == "wss" else None,
        )
        try:
            await link.upgraded
        except BaseException:
            link.vanish()
            raise
    return link
