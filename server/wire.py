"""One WebSocket of `/api/chat`, with every way it can end. It knows aiohttp and no more of a call than bytes."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Final

from aiohttp import WSMsgType, web

from server import protocol
from server.config import ServerConfig
from server.errors import RefusalError
from server.metrics import EndReason
from server.protocol import CloseCode

__all__ = ["ChatSocket"]

log = logging.getLogger(__name__)

_PARTING_S: Final = 2.0
_SWALLOW_S: Final = 0.5
"""An oversized message goes on arriving, and is thrown away, for so long before the connection is closed: closing
with bytes unread would reset it, and the peer would lose what it was told."""
_LONGEST_REASON_BYTES: Final = 123
_HANGING_UP: Final = (CloseCode.OK, CloseCode.GOING_AWAY, 0)
"""Codes of a peer that means to close; 0 is aiohttp's for a close frame without one. Others tell of a failure."""


class ChatSocket:
    """Sends and receives whole messages, and never buffers much for a peer that does not read.

    `spend` is told the size of every message received, in bytes, and raises a `RefusalError` when it is too much.
    """

    def __init__(self, config: ServerConfig, *, spend: Callable[[int], None] = lambda _bytes: None) -> None:
        self._config = config
        self._spend = spend
        self.response = _Response(config)
        """What the route's handler must return once it is open."""
        self._transport: asyncio.Transport | None = None
        self.parting = EndReason.LOST
        """Why `next_message` gave None."""

    async def open(self, request: web.Request) -> bool:
        """Upgrade the connection. Returns whether the peer is still there."""
        try:
            await self.response.prepare(request)
        except ConnectionError:
            return False
        if request.transport is None:
            return False
        self._transport = request.transport
        self._transport.set_write_buffer_limits(high=self._config.send_buffer_bytes)
        tcp = self._transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._config.send_buffer_bytes)
        return True

    async def next_message(self) -> bytes | str | None:
        """Give the next binary or text message; None when there will be no more, and `parting` then says why.

        Raises what `spend` does.
        """
        message = await self.response.receive()
        if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
            data: bytes | str = message.data
            self._spend(len(data))
            return data
        if message.type is WSMsgType.CLOSE:
            self.parting = EndReason.HANG_UP if message.data in _HANGING_UP else EndReason.LOST
        elif self.response.refused_as_too_big:
            self.parting = EndReason.TOO_BIG
        return None

    async def send(self, message: bytes) -> None:
        """Send a binary message, waiting while the peer does not read. Raises `ConnectionError` when it is gone."""
        await self.response.send_bytes(message)

    async def refuse(self, refusal: RefusalError) -> None:
        """Say why as `05`, then close with the refusal's code."""
        await self._part(refusal.close_code, str(refusal))

    async def hang_up(self) -> None:
        """Close as one does after a conversation; drop the connection if the peer does not take part."""
        await self._part(CloseCode.OK, "")

    async def _part(self, code: int, sentence: str) -> None:
        try:
            async with asyncio.timeout(_PARTING_S):
                if sentence:
                    with contextlib.suppress(ConnectionError):
                        await self.send(protocol.error(sentence))
                await self.response.close(code=code, message=_shortened(sentence))
        except TimeoutError:
            log.debug("a peer did not take part in closing")
        finally:
            self._drop()

    def _drop(self) -> None:
        """Free the connection even if bytes wait for a peer that will never read them."""
        try:
            if self._transport is not None and self._transport.get_write_buffer_size():
                self._transport.abort()
        except AttributeError:
            log.debug("a TLS connection was closed twice: asyncio has let go of it, and frees it itself")


def _shortened(sentence: str) -> bytes:
    """Cut to what fits into a close frame, between characters."""
    return sentence.encode()[:_LONGEST_REASON_BYTES].decode(errors="ignore").encode()


class _Response(web.WebSocketResponse):
    """Explains itself before aiohttp closes an oversized message's connection."""

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(
            heartbeat=config.heartbeat_s,
            max_msg_size=config.max_message_bytes,
            compress=False,
            writer_limit=0,
            timeout=_PARTING_S,
        )
        self.refused_as_too_big = False
        self._limit = config.max_message_bytes

    async def close(self, *, code: int = CloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        if code == CloseCode.TOO_BIG and not self.closed:
            self.refused_as_too_big = True
            sentence = f"got a message that is too long; expected at most {self._limit} bytes; send shorter ones"
            with contextlib.suppress(ConnectionError):
                await self.send_bytes(protocol.error(sentence))
                await asyncio.sleep(_SWALLOW_S)
        return await super().close(code=code, message=message, drain=drain)
