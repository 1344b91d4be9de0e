"""Follows the registry of adapters, so that calls speak with what is live there.

The journal's `adapters` table is the truth; this file looks at it once a second, in a thread of its own, and at once
when somebody asks over HTTP. What is to speak is read into the engine in the background (`adapter_shelf`), and
then the tick thread is given a new plan (`adapter_plan`), which it obeys between two steps. What cannot be read never
becomes current: what spoke before goes on, and the reason stands in the log, in `/api/adapters` and among the adapter's
verdicts. What is live and cannot be read is taken back for the last one before it that can. It opens a journal that is
there and makes none. It knows no calls; what operators ask is `adapter_operator`'s business.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Engine as Database
from sqlalchemy import RowMapping, or_, select
from sqlalchemy.exc import SQLAlchemyError

from server.adapter_plan import Plan, Version
from server.adapter_refusals import note_refusal, retired, take_back
from server.adapter_shelf import Shelf
from server.engine import Engine
from server.errors import DuologueError
from server.journal import schema
from server.journal.adapter_records import SPEAKING
from server.journal.database import connect, exists
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState
from server.metrics import Metrics, SwapResult

__all__ = ["Adapters", "Applied", "Prepared"]

log = logging.getLogger(__name__)

_POLL_S: Final = 0.8
"""With the time of a look and of a step, a rollback in the registry reaches every row within a second."""
_OBEY_S: Final = 5.0
_STOP_S: Final = 10.0
_FIRST_S: Final = 60.0
_HEARD: Final = (AdapterState.LIVE, AdapterState.CANARY)
_MAY_GO_ON: Final = frozenset({*SPEAKING, AdapterState.RETIRED})


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a plan in the tick thread."""

    dropped: frozenset[int]
    """Places that are free now."""
    moved: int
    """Calls that were taken off what they spoke with."""
    flip_s: float
    """How long the tick was held up."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An engine with its adapters, before anybody calls it."""

    shelf: Shelf
    plan: Plan


Apply = Callable[[Engine, Plan, frozenset[int]], "Future[Applied]"]
"""Has the tick thread obey a plan and free those of an engine's places that are not in use."""


class Adapters:
    """The serving side of adapters. `share` is the share of users who hear a canary."""

    def __init__(
        self, *, data_dir: Path, journal_url: str | None, share: float, apply: Apply, metrics: Metrics
    ) -> None:
        self.problem = ""
        """Why the registry cannot be followed; empty when all is well."""
        self.share = share
        self.plan = Plan(share=share)
        self._place = (data_dir, journal_url)
        self._apply = apply
        self._metrics = metrics
        self._database: Database | None = None
        self._shelf: Shelf | None = None
        self._elders: frozenset[str] = frozenset()
        """Adapters that calls at older engines may speak with."""
        self._previous = ""
        """The live one before this, kept ready for a rollback."""
        self._owed = False
        """Older engines have not been told yet who may not speak any more."""
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="duologue-adapters", daemon=True)

    def prepare(self, engine: Engine) -> Prepared:
        """Make an engine ready: what is live and canary is read and checked, or refused. Blocks."""
        shelf = Shelf(engine, self._place[0], self._wake.set)
        plan = Plan(share=self.share)
        with self._trying(), self._lock:
            plan = self._make_plan(shelf, plan)
            self._want_predecessor(shelf)
        while shelf.reading and not self._stopping:
            shelf.wait(_FIRST_S)
            with self._trying(), self._lock:
                plan = self._make_plan(shelf, plan)
        return Prepared(shelf=shelf, plan=plan)

    def follow(self, prepared: Prepared) -> None:
        """From now on look after this engine, whose calls obey `prepared.plan` already."""
        with self._lock:
            before, self._shelf = self._shelf, prepared.shelf
            if before is not None:
                self._elders |= frozenset(before.ready)
            self.plan, self._owed = prepared.plan, before is not None
            self._show(prepared.shelf)
        if before is not None:
            before.stop()
        elif not self._stopping:
            self._thread.start()

    def stop(self) -> None:
        """Follow no more. Blocks."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        with self._lock:
            if self._shelf is not None:
                self._shelf.stop()
            if self._database is not None:
                self._database.dispose()

    def registry(self) -> AdapterRegistry | None:
        """None as long as there is no journal. Blocks. Raises `SQLAlchemyError`, `DuologueError` and `OSError`."""
        with self._lock:
            if self._database is None:
                if not exists(*self._place):
                    return None
                self._database = connect(*self._place)
            return AdapterRegistry(self._database)

    @property
    def reading(self) -> frozenset[str]:
        """Adapters that are being read."""
        return self._shelf.reading if self._shelf is not None else frozenset()

    def is_ready(self, row: AdapterRow) -> bool:
        """Whether calls could speak with an adapter now."""
        return self._shelf is not None and self._shelf.get(row) is not None

    def why_not(self, row: AdapterRow) -> str:
        """Why an adapter is refused; empty where it is not."""
        return self._shelf.problem(row) if self._shelf is not None else ""

    def refresh(self) -> None:
        """Look at the registry now, and have the tick thread obey. Blocks. Never raises: see `problem`."""
        with self._lock, self._trying():
            if self._shelf is not None and not self._stopping:
                self._follow(self._shelf)
                self.problem = ""

    def settle(self, adapter_id: str) -> None:
        """Look now, and wait until an adapter that is being read is ready or refused. Blocks. Never raises."""
        self.refresh()
        while adapter_id in self.reading and not self._stopping:
            if (shelf := self._shelf) is not None:
                shelf.wait(_POLL_S)
            self.refresh()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(_POLL_S)
            self._wake.clear()
            self.refresh()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """Whatever goes wrong is told once, and tried again at the next look."""
        try:
            yield
        except (SQLAlchemyError, DuologueError, OSError, TimeoutError) as problem:
            self._complain(f"the registry of adapters cannot be followed: {problem}")
        except Exception as problem:
            log.exception("following the registry of adapters failed")
            self._complain(f"the registry of adapters cannot be followed: {type(problem).__name__}")

    def _complain(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s", problem)
        self.problem = problem

    def _follow(self, shelf: Shelf) -> None:
        plan = self._make_plan(shelf, self.plan)
        idle = self._idle(shelf, plan)
        if plan == self.plan and not idle and not self._owed:
            return
        before, after = self.plan, self._apply(shelf.engine, plan, idle).result(_OBEY_S)
        shelf.forget(after.dropped)
        self.plan, self._owed = plan, False
        if plan != before:
            self._note(shelf, before, after)
        if plan.crowded and after.dropped:
            self._wake.set()

    def _make_plan(self, shelf: Shelf, before: Plan) -> Plan:
        """Look at the registry, begin to read what is to speak, and say what calls are to speak with now."""
        registry = self.registry()
        if registry is None or not shelf.engine.adapter_places:
            return before
        for refusal in shelf.settle():
            self._metrics.count_swap(SwapResult.REFUSED)
            note_refusal(registry, shelf.engine, refusal)
        rows, known = self._look(self._elders | frozenset(shelf.ready))
        serves = self._shelf is None or self._shelf is shelf
        while serves and (lost := rows.get(AdapterState.LIVE)) and take_back(registry, shelf, lost):
            self._metrics.rollbacks.inc()
            rows, known = self._look(self._elders | frozenset(shelf.ready))
        for each in rows.values():
            shelf.want(each)
        allowed = frozenset(each for each, state in known.items() if state in _MAY_GO_ON)
        wanted, canary = (shelf.get(rows[state]) if state in rows else None for state in _HEARD)
        row: AdapterRow | None = rows.get(AdapterState.LIVE)
        waits = row is not None and wanted is None
        spoke = before.live if before.live is not None and before.live.id in allowed else None
        return Plan(
            live=spoke if waits else wanted,
            canary=canary,
            share=self.share,
            allowed=allowed,
            pending=row is not None and waits and not shelf.problem(row),
            crowded=shelf.crowded,
        )

    def _look(self, ids: frozenset[str]) -> tuple[dict[AdapterState, AdapterRow], dict[str, AdapterState]]:
        """What is live and canary, and the states of these, with one query: it is asked all the time."""
        assert self._database is not None, "there is a registry"
        table = schema.adapters
        query = select(table).where(or_(table.c.state.in_([*_HEARD]), table.c.id.in_(sorted(ids))))
        with self._database.connect() as connection:
            found = [_row(mapping) for mapping in connection.execute(query).mappings()]
        rows: dict[AdapterState, AdapterRow] = {row.state: row for row in found if row.state in _HEARD}
        return rows, {row.id: row.state for row in found if row.id in ids}

    def _want_predecessor(self, shelf: Shelf) -> None:
        """Have at hand what a rollback would bring back."""
        registry = self.registry()
        if registry is None or not shelf.engine.adapter_places:
            return
        if before := next(iter(retired(registry, shelf.engine)), None):
            shelf.want(before)
            self._previous = before.id

    def _idle(self, shelf: Shelf, plan: Plan) -> frozenset[int]:
        """Numbers of adapters that no new call gets. The live one before this is kept while there is room."""
        if before := self.plan.live:
            self._previous = self._previous if before == plan.live else before.id
        kept = {version.id for version in (plan.live, plan.canary) if version is not None}
        if not plan.crowded and self._previous in plan.allowed:
            kept.add(self._previous)
        return frozenset(version.number for version in shelf.ready.values() if version.id not in kept)

    def _note(self, shelf: Shelf, before: Plan, after: Applied) -> None:
        plan, metrics = self.plan, self._metrics
        metrics.swap_flip.observe(after.flip_s)
        new = {_id(plan.live), _id(plan.canary)} - {_id(before.live), _id(before.canary)}
        for adapter in new - {""}:
            metrics.count_swap(SwapResult.FLIPPED)
            log.info("adapter %s speaks in new calls", adapter)
        gone = {_id(before.live), _id(before.canary)} - {""} - plan.allowed
        if gone:
            metrics.rollbacks.inc()
            log.warning("adapter %s may not speak any more: %d calls moved", ", ".join(sorted(gone)), after.moved)
        self._show(shelf)

    def _show(self, shelf: Shelf) -> None:
        self._metrics.show_adapters(self.plan.speaking(), base=shelf.engine.base_sha256[:12])
        self._metrics.swap_staged.set(shelf.staged_bytes)


def _id(version: Version | None) -> str:
    return "" if version is None else version.id


def _row(mapping: RowMapping) -> AdapterRow:
    return msgspec.convert({str(name): value for name, value in mapping.items()}, AdapterRow)
