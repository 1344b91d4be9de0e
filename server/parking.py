"""Calls that outlive their connection: resume tokens, and the slots that wait for somebody to come back.

It knows calls, tokens and timers; sockets and the queue are `calls`' business. Lives on the event loop.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

from server.auth import Identity
from server.errors import ResumeError, TakenOverError
from server.session import Session
from server.slots import Ticket

__all__ = ["Call", "Parking"]

_TOKEN_BYTES: Final = 24


class Call:
    """One conversation: its session, its place, and at most one socket at a time."""

    def __init__(self, session: Session, ticket: Ticket, who: Identity) -> None:
        self.session = session
        self.ticket = ticket
        self.who = who
        """By the credentials of the newest socket."""
        self.over = False
        self.digest = b""
        """SHA-256 of the token that resumes the call; empty when none does."""
        self._wanted = asyncio.Event()
        self._free = asyncio.Event()

    def release(self) -> None:
        """Say that the socket has let go of the call, which may be over."""
        self._free.set()

    async def take_over(self) -> bool:
        """Make the present socket, if there is one, let go. Returns whether there still is a call to go on with."""
        self._wanted.set()
        await self._free.wait()
        self._wanted.clear()
        self._free.clear()
        return not self.over

    async def until_taken_over(self) -> None:
        """Wait until another connection wants the call, and raise `TakenOverError`."""
        await self._wanted.wait()
        raise TakenOverError


class Parking:
    """Issues tokens and keeps lost calls for `grace_s`; with 0 it does neither.

    Tokens are compared in constant time and only their hashes are kept. `on_expired` ends a call nobody came back to.
    """

    def __init__(self, *, grace_s: float, on_expired: Callable[[Call], None]) -> None:
        self._grace_s = grace_s
        self._on_expired = on_expired
        self._calls: set[Call] = set()
        self._parked: dict[Call, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def parked(self) -> tuple[Call, ...]:
        """The calls that wait for their caller, the longest first."""
        return tuple(self._parked)

    @property
    def oldest(self) -> Call | None:
        """The call that has waited longest for its caller."""
        return next(iter(self._parked), None)

    def issue(self, call: Call) -> str | None:
        """Give the call a new token. The last one is worth nothing from now on."""
        if not self._grace_s:
            return None
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        call.digest = _digest(token)
        self._calls.add(call)
        return token

    def claim(self, token: str, user_hash: str = "") -> Call:
        """Use up a token. Raises `ResumeError` unless it is that of a call of theirs.

        Never issued, used, expired and somebody else's are one.
        """
        digest, found = _digest(token), None
        for call in self._calls:
            if hmac.compare_digest(call.digest, digest) and call.session.user_hash == user_hash:
                found = call
        if found is None:
            raise ResumeError(self._grace_s)
        self._calls.remove(found)
        return found

    def expects(self, call: Call) -> bool:
        """Whether somebody holds a token to come back to the call with."""
        return call in self._calls

    def park(self, call: Call) -> None:
        """Keep a call that lost its socket, for a while."""
        loop = asyncio.get_running_loop()
        self._parked[call] = loop.call_later(self._grace_s, self._on_expired, call)

    def forget(self, call: Call) -> None:
        """The call goes on, or is over: it waits no longer."""
        if (timer := self._parked.pop(call, None)) is not None:
            timer.cancel()
        if call.over:
            self._calls.discard(call)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
