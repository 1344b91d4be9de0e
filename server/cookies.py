"""The signed cookie of somebody who has signed in on the page: written, and read without trust.

It says whose token it was made for, by a mark, and until when it holds. The token itself is not in it. A token that is
taken out of the file takes its cookies with it.
"""

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec

from server.secret import ServerSecret

__all__ = ["COOKIE", "CookieJar"]

COOKIE: Final = "duologue"
_LONGEST: Final = 1024
_PURPOSE: Final = "cookie"


class _Pass(msgspec.Struct, frozen=True, kw_only=True):
    mark: str
    until: int
    """Seconds since 1970 (UTC)."""
    nonce: str = ""
    """Makes each cookie another."""


class CookieJar:
    """Makes and reads cookies that hold for `login_s`. `clock` gives seconds since 1970 and outlives restarts."""

    def __init__(self, secret: ServerSecret, *, login_s: float, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._login_s = login_s
        self._clock = clock

    def make(self, mark: str) -> str:
        """Write a cookie for the token with this mark: letters, digits, - _ and one full stop."""
        until = int(self._clock() + self._login_s)
        body = msgspec.json.encode(_Pass(mark=mark, until=until, nonce=secrets.token_urlsafe(6)))
        return f"{_text(body)}.{_text(self._secret.sign(_PURPOSE, body))}"

    def read(self, value: str) -> str | None:
        """Give the mark in a cookie; None when it is not one of ours, was touched, or has run out."""
        if len(value) > _LONGEST:
            return None
        body, _, seal = value.partition(".")
        try:
            plain, signature = _bytes(body), _bytes(seal)
            if not hmac.compare_digest(self._secret.sign(_PURPOSE, plain), signature):
                return None
            content = msgspec.json.decode(plain, type=_Pass)
        except (ValueError, binascii.Error, msgspec.DecodeError):
            return None
        return content.mark if self._clock() < content.until else None


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
