"""How many connections one address may hold open, whatever is asked on them, and if nothing is.

What is asked is counted elsewhere (`limits`); a connection on which nothing is asked costs a file of the process until
it is closed. This file knows aiohttp's server and its connections, no requests. Under TLS a connection is counted when
its handshake is over.
"""

import asyncio
import logging
from collections import Counter
from typing import Final

from aiohttp import web

from server.addresses import Addresses

__all__ = ["Connections"]

log = logging.getLogger(__name__)

_FOR_EACH_CALL: Final = 4
"""A browser holds a few more than its call: the page, its files, what it asks meanwhile."""


class Connections:
    """Counts the open connections of each address and breaks off those beyond `4 * max_calls`. On the event loop."""

    def __init__(self, addresses: Addresses, *, max_calls: int) -> None:
        self._addresses = addresses
        self._most = _FOR_EACH_CALL * max_calls
        self._open: Counter[str] = Counter()
        self._counted: dict[web.RequestHandler, str] = {}

    def watch(self, server: web.Server) -> None:
        """Stand between a server and its connections, from the first on."""
        made, lost = server.connection_made, server.connection_lost

        def connection_made(handler: web.RequestHandler, transport: asyncio.Transport) -> None:
            made(handler, transport)
            if not self._come(handler, transport):
                transport.abort()

        def connection_lost(handler: web.RequestHandler, exc: BaseException | None = None) -> None:
            self._go(handler)
            lost(handler, exc)

        server.connection_made = connection_made  # type: ignore[method-assign]
        server.connection_lost = connection_lost  # type: ignore[method-assign]

    def _come(self, handler: web.RequestHandler, transport: asyncio.Transport) -> bool:
        """Count a connection. Returns whether there was room for it."""
        peer = transport.get_extra_info("peername")
        address = self._addresses.limited(peer[0]) if isinstance(peer, tuple) else None
        if address is None:
            return True
        if self._open[address] >= self._most:
            log.debug("an address has %d connections: one more is broken off", self._most)
            return False
        self._open[address] += 1
        self._counted[handler] = address
        return True

    def _go(self, handler: web.RequestHandler) -> None:
        if (address := self._counted.pop(handler, None)) is not None:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]
