"""What every request passes before anything is done about it: whether it may be asked here, and by whom.

One table says what each address needs. Addresses that are in no table are the operator's, and everything that changes
something is an admin's, so that a new route is closed until somebody opens it here. It knows nothing of calls.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from server.addresses import Addresses, Visitor
from server.auth import NOBODY, Auth, Identity
from server.errors import DoorError, UnauthorisedError
from server.limits import AddressLimits
from server.metrics import Metrics, Rejection
from server.origins import Origins

__all__ = ["VISITOR", "WHO", "Doors"]

log = logging.getLogger(__name__)

WHO: Final = web.RequestKey("who", Identity)
"""Where a handler finds who asks."""
VISITOR: Final = web.RequestKey("visitor", Visitor)
"""Where it finds from which address."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ANYBODY: Final = frozenset({"/", "/dashboard", "/healthz", "/readyz", "/api/login", "/api/logout"})
_CALLERS: Final = frozenset({"/api/chat", "/api/info"})
_PAGES: Final = "/static/"
"""Files of the page: the same for everybody."""
_SHARED: Final = frozenset({"/api/info", "/healthz", "/readyz"})
"""What pages of allowed origins may read, beside calling; operators' figures are for programs and our own pages."""
_READING: Final = frozenset({"GET", "HEAD"})
_SIGNING: Final = frozenset({"/api/login", "/api/logout"})


class Doors:
    """The middleware of a server."""

    def __init__(
        self, *, addresses: Addresses, origins: Origins, limits: AddressLimits, auth: Auth, metrics: Metrics
    ) -> None:
        self._addresses = addresses
        self._origins = origins
        self._limits = limits
        self._auth = auth
        self._metrics = metrics

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request through to its handler, or turn it away with a sentence."""
        visitor = request[VISITOR] = self._addresses.visitor(request)
        try:
            response = await self._answer(request, visitor, handler)
        except DoorError as problem:
            if isinstance(problem, UnauthorisedError):
                self._limits.wrong_token(visitor)
            if request.path == "/api/chat":
                self._metrics.count_rejection(_COUNTED.get(problem.status, Rejection.FORBIDDEN))
            response = _turn_away(problem)
        if request.path in _SHARED:
            response.headers.update(self._origins.sharing(request))
        return response

    async def _answer(self, request: web.Request, visitor: Visitor, handler: Handler) -> web.StreamResponse:
        self._limits.request(visitor)
        self._origins.check(request)
        if request.path in _SHARED and (first := self._origins.answer_first(request)) is not None:
            return first
        request[WHO] = self._check(request)
        return await handler(request)

    def _check(self, request: web.Request) -> Identity:
        path = request.path
        if request.method not in _READING and path not in _SIGNING:
            return self._auth.demand_admin(request)
        if path in _ANYBODY or path.startswith(_PAGES):
            return NOBODY
        return self._auth.demand_call(request) if path in _CALLERS else self._auth.demand_watch(request)


_COUNTED: Final = {401: Rejection.UNAUTHORISED, 403: Rejection.FORBIDDEN, 429: Rejection.TOO_MANY}
_HINTS: Final = {401: {"WWW-Authenticate": 'Bearer realm="duologue"'}, 429: {"Retry-After": "5"}}


def _turn_away(problem: DoorError) -> web.Response:
    headers = {"Cache-Control": "no-store"} | _HINTS.get(problem.status, {})
    return web.Response(status=problem.status, text=f"{problem}\n", headers=headers)
