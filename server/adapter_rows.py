"""Which adapter each row of one engine speaks with, and the moment it changes to another.

Lives in the tick thread, between two steps, so a change is never heard in the middle of one. A call keeps the version
it began with. It is moved when it falls silent, where that is wanted, and at once when its version may not speak any
more. It knows an engine and sessions; where plans come from is `adapters`' business.
"""

from collections.abc import Collection, Iterable

import msgspec

from server.adapter_plan import NOBODYS, Plan, Version
from server.engine import Engine
from server.session import Session

__all__ = ["AdapterRows"]


class _Row(msgspec.Struct, eq=False):
    session: Session
    version: Version | None
    displaced: bool = False
    """It was moved to what there was, while what it should have got was not ready."""

    @property
    def user(self) -> str:
        return self.session.user_hash or self.session.id


class AdapterRows:
    """The open rows of one engine. With `swap_live` a call follows its plan at the next silence."""

    def __init__(self, engine: Engine, *, swap_live: bool, plan: Plan = NOBODYS) -> None:
        self.plan = plan
        self.waiting: frozenset[int] = frozenset()
        """Slots that are to be moved at their next silence. May be read from another thread."""
        self._engine = engine
        self._swap_live = swap_live
        self._rows: dict[int, _Row] = {}

    def choose(self, session: Session) -> Version | None:
        """What a new call is to speak with; None for the base model."""
        return self.plan.choose(session.user_hash or session.id)

    def open(self, session: Session, slot: int, version: Version | None) -> None:
        """Note that a call has begun with a version."""
        self._rows[slot] = _Row(session, version)
        self._tell(self._rows[slot])

    def close(self, slot: int) -> None:
        """Note that a call is over. Does nothing for a slot without one."""
        if self._rows.pop(slot, None) is not None:
            self._look()

    def adopt(self, plan: Plan) -> int:
        """Obey a plan from now on. Returns how many calls were taken off versions that may not speak any more."""
        self.plan = plan
        moved = 0
        for slot, row in self._rows.items():
            if row.version is not None and row.version.id not in plan.allowed:
                self._move(slot, row)
                row.displaced = plan.pending
                moved += 1
            self._tell(row)
        self._look()
        return moved

    def forget(self, session: Session) -> None:
        """Note that a call is over whose slot the engine has closed after a fault."""
        for slot in [slot for slot, row in self._rows.items() if row.session is session]:
            self.close(slot)

    def silent(self, sessions: Collection[Session]) -> int:
        """Note that nobody speaks in these calls now. Returns how many were moved."""
        due = [slot for slot in self.waiting if self._rows[slot].session in sessions]
        for slot in due:
            self._move(slot, self._rows[slot])
            self._rows[slot].displaced = False
            self._tell(self._rows[slot])
        if due:
            self._look()
        return len(due)

    def restrict(self, allowed: frozenset[str]) -> int:
        """Obey that only these may speak, where no new calls come any more. Returns how many calls were moved."""
        live, canary = (
            version if version is not None and version.id in allowed else None
            for version in (self.plan.live, self.plan.canary)
        )
        plan = msgspec.structs.replace(self.plan, live=live, canary=canary, allowed=allowed)
        return self.adopt(plan) if plan != self.plan else 0

    def drop(self, numbers: Iterable[int]) -> frozenset[int]:
        """Free the engine's places with these numbers that no call uses. Returns which were freed."""
        used = {row.version.number for row in self._rows.values() if row.version is not None}
        kept = {version.number for version in (self.plan.live, self.plan.canary) if version is not None}
        unused = frozenset(numbers) - used - kept
        for number in unused:
            self._engine.drop_adapter(number)
        return unused

    def _move(self, slot: int, row: _Row) -> None:
        row.version = self.plan.choose(row.user)
        self._engine.use_adapter(slot, row.version.number if row.version is not None else None)

    def _look(self) -> None:
        """Find out who is to be moved at the next silence."""
        self.waiting = frozenset(slot for slot, row in self._rows.items() if self._should_move(row))

    def _should_move(self, row: _Row) -> bool:
        if row.version == self.plan.choose(row.user) or (row.displaced and self.plan.pending):
            return False
        in_the_way = self.plan.crowded and row.version not in (None, self.plan.live, self.plan.canary)
        return self._swap_live or row.displaced or in_the_way

    def _tell(self, row: _Row) -> None:
        row.session.adapter = "" if row.version is None else row.version.id
        row.session.adapter_role = self.plan.role(row.version)
