"""Which web pages may use this server, and what those from elsewhere may read: a browser says whose page it shows.

Without the check of `Origin`, any page in somebody's browser could call a server that the browser can reach, also one
that listens to its own machine alone. Clients that are no browsers send no `Origin` and pass.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from server.errors import ConfigError, ForbiddenError

__all__ = ["Origins"]

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_ANY: Final = "*"
_CHANGING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_ASKING: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": "Authorization",
    "Access-Control-Max-Age": "600",
}
"""What a browser is told that asks first. Without `Access-Control-Allow-Credentials` it neither sends the cookie nor
shows an answer to it: a page from elsewhere is whoever its own token says, never whoever is signed in here."""


class Origins:
    """Checks pages and the names under which the server is called.

    A page from the very host and port it calls is always allowed, others when they are in `allowed`. With
    `only_here`, for a server that asks nobody for a token, the host must be a name of this machine's loopback or that
    of an allowed origin: otherwise a page could make its own name point here (DNS rebinding), and a proxy could put
    the server on the network without a word. Raises `ConfigError` for what is no origin.
    """

    def __init__(self, allowed: Sequence[str], *, only_here: bool) -> None:
        self._any = _ANY in allowed
        self._allowed = frozenset(_configured(text) for text in allowed if text != _ANY)
        self._hosts = frozenset(urlsplit(origin).hostname or "" for origin in self._allowed)
        self._only_here = only_here

    def check(self, request: web.Request) -> None:
        """Raise `ForbiddenError` unless the page, if there is one, may use this server.

        That all pages are allowed is not enough for changing something.
        """
        host = request.headers.get("Host", "").lower()
        if self._only_here and not self._is_here(host):
            raise ForbiddenError(
                got=f"a request for the host {host[:80]!r}",
                expected="127.0.0.1 or localhost, for this server lets callers in without a token",
                remedy="start it with --token-file, or with --allow-origin and the origin of the page",
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self._may(origin, host, changing=request.method in _CHANGING):
            raise ForbiddenError(
                got=f"a request from a page of {origin[:80]!r}",
                expected="a page of this server's own host and port",
                remedy="start the server with --allow-origin and that origin if the page is yours",
            )

    def sharing(self, request: web.Request) -> dict[str, str]:
        """Headers by which a browser lets a page of an allowed origin read the answer, without the cookie."""
        if not (self._any or self._allowed):
            return {}
        origin = request.headers.get("Origin", "")
        allowed = self._any or _normal(origin) in self._allowed
        shared = {"Access-Control-Allow-Origin": _ANY if self._any else origin} if origin and allowed else {}
        return {"Vary": "Origin"} | shared

    def answer_first(self, request: web.Request) -> web.Response | None:
        """Answer a browser that asks whether a page from elsewhere may ask; None when this is not such a question."""
        if request.method != "OPTIONS" or "Access-Control-Allow-Origin" not in self.sharing(request):
            return None
        return web.Response(status=204, headers=_ASKING)

    def _is_here(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return not host
        name = match[1].strip("[]")
        return name == "localhost" or name in self._hosts or _is_loopback(name)

    def _may(self, origin: str, host: str, *, changing: bool) -> bool:
        if self._any and not changing:
            return True
        known = _normal(origin)
        if known is None:
            return False
        scheme, _, authority = known.partition("://")
        port = ":" + _DEFAULT_PORTS[scheme]
        return known in self._allowed or authority == host.removesuffix(port)


def _normal(origin: str) -> str | None:
    """`scheme://host[:port]` in small letters, without a port that goes without saying; None for anything else."""
    scheme, separator, authority = origin.strip().lower().partition("://")
    match = _HOST.fullmatch(authority)
    if not separator or scheme not in _DEFAULT_PORTS or match is None:
        return None
    return f"{scheme}://{authority.removesuffix(':' + _DEFAULT_PORTS[scheme])}"


def _configured(text: str) -> str:
    if (origin := _normal(text.rstrip("/"))) is None:
        raise ConfigError("allow_origin", got=repr(text), expected="such as https://talk.example.org, or *")
    return origin


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
