"""Signing in on the page: a token becomes a cookie, for a browser's WebSocket can carry no other credentials.

`POST /api/login` takes the token as JSON or from a form; `/?token=...`, a link that an operator hands out, does the
same and takes the token out of the address. The cookie is HttpOnly: no script reads it; under TLS it is Secure, too.
"""

import asyncio
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from server.auth import Auth, Identity
from server.cookies import COOKIE
from server.doors import VISITOR
from server.errors import DoorError

__all__ = ["Login"]

_PAGE: Final = Path(__file__).parent / "web" / "sign_in.html"
_PRIVATE: Final = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
_POLICY: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
}
_FORM: Final = "application/x-www-form-urlencoded"
_MOST_FIELDS: Final = 8
_PATIENCE_S: Final = 10.0


class _Asked(msgspec.Struct, frozen=True):
    token: str


class _SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    role: str
    user: str
    """What stands for this person in everything that is kept: needed to have it deleted."""
    holds_s: float


class Login:
    """The routes of signing in and out."""

    def __init__(self, auth: Auth, *, holds_s: float) -> None:
        self._auth = auth
        self._holds_s = holds_s
        self._page = _PAGE.read_bytes()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Put them where the page expects them."""
        router.add_get("/", self._home)
        router.add_post("/api/login", self._sign_in)
        router.add_post("/api/logout", self._sign_out)

    async def _home(self, request: web.Request) -> web.Response:
        if "token" in request.query:
            _, cookie = self._auth.sign_in(request.query["token"])
            return self._with_cookie(request, web.Response(status=303, headers={"Location": "/"}), cookie)
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=_PRIVATE | _POLICY)

    async def _sign_in(self, request: web.Request) -> web.Response:
        by_form = request.content_type == _FORM
        who, cookie = self._auth.sign_in(_token(await _body(request), by_form=by_form))
        if by_form:
            response = web.Response(status=303, headers={"Location": "/"})
        else:
            response = web.Response(body=msgspec.json.encode(self._describe(who)), content_type="application/json")
        return self._with_cookie(request, response, cookie)

    async def _sign_out(self, _request: web.Request) -> web.Response:
        response = web.Response(status=204, headers=_PRIVATE)
        response.del_cookie(COOKIE, path="/", httponly=True, samesite="Lax")
        return response

    def _describe(self, who: Identity) -> _SignedIn:
        return _SignedIn(name=who.name, role=str(who.role), user=who.user_hash, holds_s=self._holds_s)

    def _with_cookie(self, request: web.Request, response: web.Response, cookie: str) -> web.Response:
        response.headers.update(_PRIVATE)
        response.set_cookie(
            COOKIE,
            cookie,
            path="/",
            max_age=int(self._holds_s),
            httponly=True,
            samesite="Lax",
            secure=request[VISITOR].secure,
        )
        return response


async def _body(request: web.Request) -> bytes:
    """Read what was sent, if it comes soon. Raises `DoorError`."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await request.read()
    except TimeoutError as problem:
        raise DoorError(
            got="a body that does not come", expected=f"all of it within {_PATIENCE_S:g} s", remedy="send it again"
        ) from problem


def _token(body: bytes, *, by_form: bool) -> str:
    """Read the token out of a body. Raises `DoorError`."""
    try:
        if by_form:
            return parse_qs(body.decode(), max_num_fields=_MOST_FIELDS)["token"][0]
        return msgspec.json.decode(body, type=_Asked).token
    except (KeyError, ValueError, msgspec.MsgspecError) as problem:
        raise DoorError(
            got="a body without a token", expected='{"token": "..."} or a form with the field token', remedy="send one"
        ) from problem
