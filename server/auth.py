"""Who asks, and what they may: credentials of a request to an identity.

Three kinds of credentials: `Authorization: Bearer TOKEN`; for calls the stock page's query parameter `worker_auth_id`;
and the signed cookie of a browser, which can send neither. A token in a query never makes anybody an admin, for it ends
up in the logs of proxies. Nothing of a credential is logged or shown. It knows requests and no calls.
"""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from server.config import ServerConfig
from server.cookies import COOKIE, CookieJar
from server.errors import ConfigError, DoorError, ForbiddenError, TokenError, UnauthorisedError
from server.secret import ServerSecret
from server.tokens import Holder, Role, TokenBook, read_lone_token, read_token, read_token_file, read_tokens

__all__ = ["NOBODY", "Auth", "Identity", "is_loopback"]

log = logging.getLogger(__name__)

_ADMIN: Final = "admin"
_LOOK_EVERY_S: Final = 1.0
_WATCHERS: Final = "a token with the role watch or admin"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who asks. Without a name they are anonymous."""

    name: str = ""
    role: Role | None = None
    user_hash: str = ""
    """Stands for them in what is kept; empty for the anonymous."""
    mark: str = ""
    """Of the token they showed, or their cookie was made for."""


NOBODY: Final = Identity()


class Auth:
    """Tells who asks. Raises `ConfigError` and `TokenError` for settings with which it may not begin.

    `callers_need_token` is whether calls are only for those who have one. `open_house` is a server of one's own: it
    listens to this machine alone and asks nobody for anything, but for changes.
    """

    def __init__(self, config: ServerConfig, secret: ServerSecret) -> None:
        self._config = config
        self._secret = secret
        self._files = [path for path in (config.token_file, config.admin_token_file) if path is not None]
        self._stamp = _stamp(self._files)
        self._book = _read_book(config)
        self.cookies = CookieJar(secret, login_s=config.login_s)
        self.on_change: Callable[[], object] = lambda: None
        """Called when tokens were read again, on whatever thread reads them."""
        configured = config.token_file is not None or bool(config.tokens.strip())
        self.callers_need_token = configured and not config.allow_anonymous
        self.open_house = not configured and is_loopback(config.host)
        if not (configured or self.open_house or config.allow_anonymous):
            raise ConfigError(
                "host",
                got=f"{config.host!r}, where others than this machine may call, and no tokens",
                expected="--token-file, DUOLOGUE_TOKENS, or --allow-anonymous if everybody there may call",
            )

    def identify(self, request: web.Request) -> Identity:
        """Say who asks; `NOBODY` without credentials. Raises `UnauthorisedError` for a token that is nobody's."""
        if (token := _bearer(request)) is not None:
            return self._known(token, "an Authorization header")
        if request.path == "/api/chat" and (token := request.query.get("worker_auth_id")):
            known = self._known(token, "a worker_auth_id")
            return msgspec.structs.replace(known, role=Role.CALLER) if known.role is Role.ADMIN else known
        mark = self.cookies.read(request.cookies.get(COOKIE, ""))
        holder = self._book.marked(mark) if mark else None
        return self._identity(holder) if holder else NOBODY

    def is_admin(self, request: web.Request) -> bool:
        """Whether the request shows an admin's token or cookie. Never raises."""
        try:
            return self.identify(request).role is Role.ADMIN
        except UnauthorisedError:
            return False

    def may_watch(self, request: web.Request) -> bool:
        """Whether figures, and what is wrong inside, are for who asks. Never raises."""
        try:
            self.demand_watch(request)
        except DoorError:
            return False
        return True

    def demand_admin(self, request: web.Request) -> Identity:
        """Give the admin who asks. Raises `UnauthorisedError` without credentials, `ForbiddenError` with others."""
        who = self.identify(request)
        if not any(holder.role is Role.ADMIN for holder in self._book.holders):
            raise ForbiddenError(
                got="a request to change something, at a server without an admin's token",
                expected="a server started with --admin-token-file or DUOLOGUE_ADMIN_TOKEN",
                remedy="ask the operator to set one",
            )
        if who.role is None:
            raise UnauthorisedError(got="a request to change something without a token", expected="an admin's token")
        if who.role is not Role.ADMIN:
            raise ForbiddenError(
                got="a request to change something with a token that is not an admin's",
                expected="an admin's token",
                remedy="ask the operator",
            )
        return who

    def demand_watch(self, request: web.Request) -> Identity:
        """Give who may read figures and the list of calls. Raises `UnauthorisedError` or `ForbiddenError`."""
        who = self.identify(request)
        if self.open_house or (who.role and who.role.may_watch):
            return who
        if who.role is None:
            raise UnauthorisedError(got="a request for the operator's figures without a token", expected=_WATCHERS)
        raise ForbiddenError(
            got="a request for the operator's figures with a caller's token", expected=_WATCHERS, remedy="ask for one"
        )

    def demand_call(self, request: web.Request) -> Identity:
        """Give who calls, `NOBODY` where the anonymous may. Raises `UnauthorisedError` or `ForbiddenError`."""
        who = self.identify(request)
        if who.role is None and self.callers_need_token:
            raise UnauthorisedError(got="a call without a token")
        if who.role and not who.role.may_call:
            raise ForbiddenError(
                got="a call with a token for figures alone", expected="a caller's token", remedy="ask the operator"
            )
        return who

    def may_still_call(self, who: Identity) -> bool:
        """Whether somebody who was let in to call would be let in again: theirs is still a token of that name."""
        if not who.mark:
            return True
        holder = self._book.marked(who.mark)
        return holder is not None and holder.name == who.name and holder.role.may_call

    def sign_in(self, token: str) -> tuple[Identity, str]:
        """Check a token given on the page. Gives whose it is and a cookie. Raises `UnauthorisedError`."""
        holder = self._book.find(token)
        if holder is None:
            raise UnauthorisedError(got="a token that is nobody's")
        return self._identity(holder), self.cookies.make(holder.mark)

    def reload(self) -> None:
        """Read the token files again. A mistake in them is told in the log, and those read before go on holding."""
        try:
            self._book = _read_book(self._config)
        except TokenError as problem:
            log.error("the tokens stay as they were: %s", problem)  # noqa: TRY400 - the sentence says all
        else:
            log.info("tokens read: %d", len(self._book.holders))
            self.on_change()

    async def follow(self) -> None:
        """Read the token files whenever they have changed and stand still, for ever.

        A file that is being written has lines missing, and the calls of whoever is missing would be cut.
        """
        seen = self._stamp
        while self._files:
            await asyncio.sleep(_LOOK_EVERY_S)
            stamp = await asyncio.to_thread(_stamp, self._files)
            if stamp == seen != self._stamp:
                self._stamp = stamp
                await asyncio.to_thread(self.reload)
            seen = stamp

    def _known(self, token: str, where: str) -> Identity:
        if holder := self._book.find(token):
            return self._identity(holder)
        if self.open_house:
            return NOBODY
        raise UnauthorisedError(got=f"{where} with a token that is nobody's")

    def _identity(self, holder: Holder) -> Identity:
        user_hash = self._secret.user_hash(holder.name)
        return Identity(name=holder.name, role=holder.role, user_hash=user_hash, mark=holder.mark)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone. A name other than localhost is not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bearer(request: web.Request) -> str | None:
    """The token of an Authorization header; None without one, or with another scheme, which may be a proxy's."""
    scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _read_book(config: ServerConfig) -> TokenBook:
    return TokenBook(tuple(_holders(config)))


def _holders(config: ServerConfig) -> Iterator[Holder]:
    if config.token_file is not None:
        yield from read_token_file(config.token_file)
    yield from read_tokens(config.tokens.replace(",", "\n").splitlines(), source="DUOLOGUE_TOKENS")
    if config.admin_token_file is not None:
        yield Holder(name=_ADMIN, digest=read_lone_token(config.admin_token_file), role=Role.ADMIN)
    if config.admin_token:
        digest = read_token(config.admin_token, source="DUOLOGUE_ADMIN_TOKEN")
        yield Holder(name=_ADMIN, digest=digest, role=Role.ADMIN)


def _stamp(files: list[Path]) -> list[object]:
    """What changes when a file does; a file that is gone has none."""
    stamps: list[object] = []
    for path in files:
        with contextlib.suppress(OSError):
            status = path.stat()
            stamps.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
    return stamps
