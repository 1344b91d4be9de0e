"""What every request passes before anything is done about it: whether it may be asked here, and by whom.

One table says what each address needs. Addresses that are in no table are the operator's, and everything that changes
something is an admin's, so that a new route is closed until somebody opens it here. It knows nothing of calls.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from server.auth import NOBODY, Auth, Identity
from server.errors import DoorError
from server.metrics import Metrics, Rejection

__all__ = ["WHO", "Doors"]

log = logging.getLogger(__name__)

WHO: Final = web.RequestKey("who", Identity)
"""Where a handler finds who asks."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ANYBODY: Final = frozenset({"/", "/dashboard", "/healthz", "/readyz", "/api/login", "/api/logout"})
_CALLERS: Final = frozenset({"/api/chat", "/api/info"})
_PAGES: Final = "/static/"
"""Files of the page: the same for everybody."""
_READING: Final = frozenset({"GET", "HEAD"})
_SIGNING: Final = frozenset({"/api/login", "/api/logout"})


class Doors:
    """The middleware of a server."""

    def __init__(self, auth: Auth, metrics: Metrics) -> None:
        self._auth = auth
        self._metrics = metrics

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request through to its handler, or turn it away with a sentence."""
        try:
            request[WHO] = self._check(request)
        except DoorError as problem:
            if request.path == "/api/chat":
                self._metrics.count_rejection(_COUNTED.get(problem.status, Rejection.UNAUTHORISED))
            return _turn_away(problem)
        return await handler(request)

    def _check(self, request: web.Request) -> Identity:
        path = request.path
        if request.method not in _READING and path not in _SIGNING:
            return self._auth.demand_admin(request)
        if path in _ANYBODY or path.startswith(_PAGES):
            return NOBODY
        return self._auth.demand_call(request) if path in _CALLERS else self._auth.demand_watch(request)


_COUNTED: Final = {401: Rejection.UNAUTHORISED, 403: Rejection.FORBIDDEN}


def _turn_away(problem: DoorError) -> web.Response:
    headers = {"WWW-Authenticate": 'Bearer realm="duologue"'} if problem.status == 401 else {}
    return web.Response(status=problem.status, text=f"{problem}\n", headers=headers)
