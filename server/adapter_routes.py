"""`/api/adapters`: what there is, what speaks, and the two words an operator has. Knows HTTP and no engine.

Who may ask is settled before (`doors`): reading is the operator's, changing an admin's.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from server.adapter_operator import AdapterOperator
from server.adapters import Adapters
from server.calls import CallDesk
from server.errors import DuologueError
from server.journal.registry import AdapterRow, RegistryError, VerdictRow
from server.scheduler import Flips

__all__ = ["AdapterRoutes", "AdapterView"]


class AdapterView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `/api/adapters`."""

    id: str
    state: str
    """In the registry: `staged`, `canary`, `live`, `retired`, `rejected` or `rolled_back`."""
    made_at: float
    changed_at: float
    parent: str
    checkpoint: str
    sha256: str
    withdrawn: bool
    ready: bool
    """Whether this server has it in its engine."""
    calls: int
    """Of this server, that speak with it now."""
    problem: str
    """Why this server refuses it; empty where it does not."""


class AdapterRoutes:
    """The addresses below `/api/adapters`."""

    def __init__(self, adapters: Adapters, desk: CallDesk, flips: Flips) -> None:
        self._adapters, self._operator = adapters, AdapterOperator(adapters)
        self._desk = desk
        self._flips = flips

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Make them known."""
        router.add_get("/api/adapters", self._list)
        router.add_get("/api/adapters/{id}", self._show)
        router.add_post("/api/adapters/{id}/promote", self._promote)
        router.add_post("/api/adapters/{id}/rollback", self._roll_back)

    async def _list(self, _request: web.Request) -> web.Response:
        try:
            rows = await asyncio.to_thread(self._operator.rows)
        except (DuologueError, SQLAlchemyError, OSError) as problem:
            return _refusal(503, f"the registry of adapters cannot be read: {problem}")
        calls = self._calls()
        plan = self._adapters.plan
        return _json(
            {
                "live": plan.live.id if plan.live is not None else None,
                "canary": plan.canary.id if plan.canary is not None else None,
                "canary_share": plan.share,
                "calls_with_base": calls[""],
                "calls_moved": self._flips.calls_moved,
                "longest_flip_ms": round(1000 * self._flips.longest_s, 4),
                "waiting_for_room": plan.crowded,
                "problem": self._adapters.problem,
                "adapters": [self._view(row, calls) for row in rows],
            }
        )

    async def _show(self, request: web.Request) -> web.Response:
        try:
            row, verdicts = await asyncio.to_thread(self._operator.get, request.match_info["id"])
        except RegistryError as problem:
            return _refusal(404, str(problem))
        except (DuologueError, SQLAlchemyError, OSError) as problem:
            return _refusal(503, f"the registry of adapters cannot be read: {problem}")
        return _json({"adapter": self._view(row, self._calls()), "verdicts": [_said(each) for each in verdicts]})

    async def _promote(self, request: web.Request) -> web.Response:
        return await self._change(request, self._operator.promote, "promoted by an admin")

    async def _roll_back(self, request: web.Request) -> web.Response:
        return await self._change(request, self._operator.roll_back, "taken back by an admin")

    async def _change(
        self, request: web.Request, change: Callable[..., AdapterRow], default_reason: str
    ) -> web.Response:
        """Do it in a thread, to the end even if who asked does not wait for it."""
        adapter, reason = request.match_info["id"], request.query.get("reason", default_reason)[:_LONGEST_REASON]
        try:
            row = await asyncio.shield(asyncio.to_thread(change, adapter, reason=reason))
        except RegistryError as problem:
            return _refusal(409 if await asyncio.to_thread(self._is_known, adapter) else 404, str(problem))
        except (DuologueError, SQLAlchemyError, OSError) as problem:
            return _refusal(503, f"adapter {adapter} cannot be moved: {problem}")
        return _json({"adapter": self._view(row, self._calls()), "problem": self._adapters.problem})

    def _is_known(self, adapter: str) -> bool:
        with contextlib.suppress(DuologueError, SQLAlchemyError, OSError):
            return bool(self._operator.get(adapter))
        return False

    def _calls(self) -> Counter[str]:
        return Counter(view.adapter for view in self._desk.views())

    def _view(self, row: AdapterRow, calls: Counter[str]) -> AdapterView:
        return AdapterView(
            id=row.id,
            state=str(row.state),
            made_at=row.made_at,
            changed_at=row.changed_at,
            parent=row.parent,
            checkpoint=row.checkpoint,
            sha256=row.sha256,
            withdrawn=row.withdrawn,
            ready=self._adapters.is_ready(row),
            calls=calls[row.id],
            problem=self._adapters.why_not(row),
        )


_LONGEST_REASON = 500


def _said(verdict: VerdictRow) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(verdict)
    return fields | {"figures": msgspec.Raw(verdict.figures.encode())}


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _refusal(status: int, sentence: str) -> web.Response:
    return web.Response(status=status, text=f"{sentence}\n")
