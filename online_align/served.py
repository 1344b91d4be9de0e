"""What is known of servers and an adapter: one refused it, calls have spoken with it, or nobody has said anything.

The journal alone is asked, so that it can be told where no server runs. A server writes down what it refuses and the
calls it keeps, and not what it has read: `/api/adapters` of the server itself says that.
"""

import time
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import func, or_, select

from online_align.bases import base_of, newest_base
from server.journal import Journal, schema
from server.journal.adapter_records import SPEAKING
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState, VerdictStage

__all__ = ["Known", "Served", "served", "when"]

_WAITING: Final = (AdapterState.STAGED, *SPEAKING)
_UNJUDGED: Final = "no gate has judged it, and nobody hears what no gate has judged: `adapters judge` lets it"
_NOTHING: Final = (
    "no server is known to have read it: none has refused it, and no kept call has spoken with it. A server that runs "
    "looks within a second; its /api/adapters says whether it is `ready`, or the `problem`"
)


class Known(StrEnum):
    """What servers have made of an adapter."""

    REFUSED = "refused"
    """One cannot use its files."""
    READ = "read"
    """One has it: a kept call spoke with it."""
    NOTHING = "nothing"
    """None has refused it, and no kept call spoke with it."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter, seen from the servers."""

    known: Known
    refusal: str = ""
    """In that server's words."""
    last_call_at: float | None = None
    """Time of day at which the last kept call that spoke with it began."""
    other_base: str = ""
    """The base model that the newest call has, where that is not the one it was learned on."""
    judged: bool = True
    """Whether a gate has said anything of it."""

    def note(self, state: AdapterState) -> str:
        """A few words, for a line of a list; empty where there is nothing to say of an adapter in this state."""
        if self.refusal:
            return "refused by a server"
        if state in _WAITING and self.other_base:
            return "of another base model than calls have" + ("" if self.judged else ", not judged")
        if self.last_call_at is not None:
            return f"last call {when(self.last_call_at)}"
        return "not known to be read by a server" if state in SPEAKING else ""

    def sentences(self, row: AdapterRow) -> list[str]:
        """For a person."""
        heard = "" if self.last_call_at is None else f"the last kept call with it began {when(self.last_call_at)}"
        said = [f"{self.refusal}{f' ({heard})' if heard else ''}"] if self.refusal else []
        if not self.refusal and heard:
            said.append(f"a server has read it: {heard}")
        if self.other_base and row.state in _WAITING:
            said.append(
                f"it was learned on {row.checkpoint}, and calls have {self.other_base} now, so they do not hear it"
            )
        elif not said and row.state in SPEAKING:
            said.append(_NOTHING)
        elif not said and row.state is AdapterState.STAGED:
            said.append("no server has looked at it: they read what is canary or live")
        if row.state is AdapterState.STAGED and not self.judged:
            said.append(_UNJUDGED)
        return said


def served(journal: Journal, row: AdapterRow) -> Served:
    """Ask the journal."""
    registry, last, newest = AdapterRegistry(journal.engine), _last_call_at(journal, row.id), newest_base(journal)
    refusal, judged = registry.refusal(row.id), VerdictStage.GATE in {each.stage for each in registry.verdicts(row.id)}
    known = Known.REFUSED if refusal else Known.NOTHING if last is None else Known.READ
    other = newest.checkpoint if newest is not None and not newest.is_same(base_of(row)) else ""
    return Served(known=known, refusal=refusal, last_call_at=last, other_base=other, judged=judged)


def when(at: float) -> str:
    """A time of day."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _last_call_at(journal: Journal, adapter: str) -> float | None:
    calls, changes = schema.sessions, schema.adapter_changes
    changed = select(changes.c.session_id).where(changes.c.adapter_id == adapter)
    query = select(func.max(calls.c.started_at)).where(or_(calls.c.adapter == adapter, calls.c.id.in_(changed)))
    with journal.engine.connect() as connection:
        found: float | None = connection.scalar(query)
    return found
