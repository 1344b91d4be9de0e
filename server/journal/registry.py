"""Adapters and their states: the one truth about which is live, moved in single transactions, each for a reason.

An adapter is `staged`, then `canary`, then `live`, then `retired`; or it ends as `rejected` (nobody may hear it) or
`rolled_back` (was taken back). At most one is live and one canary. Nothing becomes canary without a gate's verdict, and
nothing live without a canary's; an operator's word is such a verdict, but replaces no gate's, and nobody's word makes
live what a server cannot read. Any process may ask and move; whoever dies between two moves leaves a state that was
meant. It knows no files' contents and no model.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.engine import RowMapping

from server.journal import schema
from server.journal.adapter_records import (
    BY_SERVER,
    MOVES,
    NEEDS,
    SPEAKING,
    AdapterRow,
    AdapterState,
    RegistryError,
    VerdictRow,
    VerdictStage,
    check_row,
    folder_of,
    named_state,
    refused,
)
from server.journal.transactions import hold, writing

__all__ = ["AdapterRegistry", "AdapterRow", "AdapterState", "RegistryError", "VerdictRow", "VerdictStage", "folder_of"]

_BY_OPERATOR: Final = '{"by": "operator"}'


class AdapterRegistry:
    """Enters, looks up and moves adapters. Safe beside any number of others on the same database."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def add(self, row: AdapterRow, *, sessions: Iterable[str] = ()) -> None:
        """Enter an adapter as `staged`, with the calls it learned from. The same one again changes nothing.

        Raises `RegistryError` for a name, path or hash that cannot be one, and for an id that is another's.
        """
        check_row(row)
        sessions = tuple(sessions)
        with self._writing(sessions) as connection:
            known = _find(connection, row.id)
            if known is None:
                entered = msgspec.structs.asdict(row) | {
                    "changed_at": self._clock(),
                    "state": AdapterState.STAGED.value,
                }
                connection.execute(insert(schema.adapters), [entered])
            elif (known.sha256, known.path, known.checkpoint) != (row.sha256, row.path, row.checkpoint):
                raise refused(f"adapter {row.id!r} with other files than it has", "a new id", "name it otherwise")
            _learned(connection, row.id, sessions)

    def learned_from(self, adapter_id: str, sessions: Iterable[str]) -> None:
        """Note from which calls it learned. One that is deleted already withdraws it. Raises `RegistryError`."""
        sessions = tuple(sessions)
        with self._writing(sessions) as connection:
            _known(connection, adapter_id)
            _learned(connection, adapter_id, sessions)

    def sessions_of(self, adapter_id: str) -> tuple[str, ...]:
        """The calls it learned from which are still there."""
        table = schema.adapter_sessions
        query = select(table.c.session_id).where(table.c.adapter_id == adapter_id).order_by(table.c.session_id)
        with self._engine.connect() as connection:
            return tuple(connection.scalars(query))

    def get(self, adapter_id: str) -> AdapterRow:
        """One adapter. Raises `RegistryError`."""
        with self._engine.connect() as connection:
            return _known(connection, adapter_id)

    def list(self) -> tuple[AdapterRow, ...]:
        """All of them, the newest first."""
        table = schema.adapters
        with self._engine.connect() as connection:
            rows = connection.execute(select(table).order_by(table.c.made_at.desc(), table.c.id)).mappings()
            return tuple(_row(row) for row in rows)

    def live(self) -> AdapterRow | None:
        """The one that everybody hears; None while that is the base model."""
        return self._only(AdapterState.LIVE)

    def canary(self) -> AdapterRow | None:
        """The one that some users hear; None when there is none."""
        return self._only(AdapterState.CANARY)

    def transition(
        self, adapter_id: str, state: AdapterState | str, *, expected: AdapterState | str = ""
    ) -> AdapterRow:
        """Move an adapter; what was live until then retires in the same transaction. Returns its new row.

        `expected` is the state it must be in; empty for any. Raises `RegistryError` for a move that is not allowed: see
        the top of this file, and a withdrawn adapter goes to nobody.
        """
        with self._writing() as connection:
            return self._move(connection, adapter_id, named_state(state), expected)

    def decide(
        self, verdict: VerdictRow, state: AdapterState | str, *, expected: AdapterState | str = ""
    ) -> AdapterRow:
        """Append a verdict and move its adapter, both or neither. Raises `RegistryError` as `transition` does."""
        with self._writing() as connection:
            _append(connection, verdict)
            return self._move(connection, verdict.adapter_id, named_state(state), expected)

    def promote(self, adapter_id: str, *, reason: str) -> AdapterRow:
        """One step on by an operator's word: `staged` to `canary`, or `canary` to `live`. Raises `RegistryError`.

        The gate's verdict is needed all the same; the canary's is replaced by `reason`, which is kept as a verdict.
        """
        with self._writing() as connection:
            known = _known(connection, adapter_id)
            if known.state is AdapterState.CANARY:
                self._word(connection, adapter_id, passed=True, reason=reason)
                return self._move(connection, adapter_id, AdapterState.LIVE, AdapterState.CANARY)
            return self._move(connection, adapter_id, AdapterState.CANARY, "")

    def predecessor(self, adapter_id: str) -> AdapterRow | None:
        """What would speak if this adapter were taken back; None for the base model. Raises `RegistryError`."""
        with self._engine.connect() as connection:
            before = _predecessor(connection, _known(connection, adapter_id).checkpoint)
            return None if before is None else _known(connection, before)

    def roll_back(
        self, adapter_id: str, *, reason: str, figures: str = _BY_OPERATOR, expected: AdapterState | str = ""
    ) -> AdapterRow | None:
        """Take a canary or live adapter back; its live predecessor is live again. Returns what is live now.

        The predecessor is the one that retired last and is not withdrawn; without one, the base model speaks (None).
        `figures` is JSON, kept with the reason. Raises `RegistryError` when it is neither canary nor live, or not
        `expected`.
        """
        with self._writing() as connection:
            known = _known(connection, adapter_id)
            self._move(connection, adapter_id, AdapterState.ROLLED_BACK, expected)
            self._word(connection, adapter_id, passed=False, reason=reason, figures=figures)
            if known.state is AdapterState.LIVE and (before := _predecessor(connection, known.checkpoint)):
                self._set(connection, before, AdapterState.LIVE)
            return _in_state(connection, AdapterState.LIVE)

    def add_verdict(self, verdict: VerdictRow) -> None:
        """Append a verdict. Raises `RegistryError` when there is no such adapter."""
        with self._writing() as connection:
            _append(connection, verdict)

    def verdicts(self, adapter_id: str) -> tuple[VerdictRow, ...]:
        """What was said about an adapter, the oldest first."""
        with self._engine.connect() as connection:
            return _verdicts(connection, adapter_id)

    def refusal(self, adapter_id: str) -> str:
        """What a server that cannot use its files said of it; empty where none did."""
        return _refusal(self.verdicts(adapter_id))

    def _word(
        self, connection: Connection, adapter_id: str, *, passed: bool, reason: str, figures: str = _BY_OPERATOR
    ) -> None:
        word = VerdictRow(
            adapter_id=adapter_id,
            stage=VerdictStage.CANARY,
            at=self._clock(),
            passed=passed,
            reason=reason,
            figures=figures,
        )
        _append(connection, word)

    def _only(self, state: AdapterState) -> AdapterRow | None:
        with self._engine.connect() as connection:
            return _in_state(connection, state)

    def _move(
        self, connection: Connection, adapter_id: str, state: AdapterState, expected: AdapterState | str
    ) -> AdapterRow:
        known = _known(connection, adapter_id)
        if expected and known.state != named_state(expected):
            raise refused(f"adapter {adapter_id!r} {known.state}", f"it {expected}", "look again: it has moved")
        if state not in MOVES[known.state]:
            may = ", ".join(sorted(MOVES[known.state])) or "no other state"
            raise refused(
                f"adapter {adapter_id!r} from {known.state} to {state}", f"a move to {may}", "stage a new one"
            )
        if state in SPEAKING:
            _check_may_speak(connection, known, state)
        if state is AdapterState.LIVE and (before := _in_state(connection, AdapterState.LIVE)):
            self._set(connection, before.id, AdapterState.RETIRED)
        self._set(connection, adapter_id, state)
        return _known(connection, adapter_id)

    def _set(self, connection: Connection, adapter_id: str, state: AdapterState) -> None:
        table = schema.adapters
        # Never earlier than any other change: the order of retirements is read from it.
        latest = connection.scalar(select(table.c.changed_at).order_by(table.c.changed_at.desc()).limit(1)) or 0.0
        change = {"state": state.value, "changed_at": max(self._clock(), latest + 1e-3)}
        connection.execute(update(table).where(table.c.id == adapter_id).values(**change))

    @contextmanager
    def _writing(self, sessions: Sequence[str] = ()) -> Iterator[Connection]:
        """One transaction that nobody else's moves, nor deletions of these sessions, can come between."""
        with writing(self._engine) as connection:
            if sessions:
                hold(connection, sessions)
            if connection.dialect.name != "sqlite":
                connection.exec_driver_sql("LOCK TABLE adapters IN SHARE ROW EXCLUSIVE MODE")
            yield connection


def _check_may_speak(connection: Connection, known: AdapterRow, state: AdapterState) -> None:
    if known.withdrawn:
        raise refused(
            f"adapter {known.id!r}, which learned from a call that was deleted",
            "one whose calls are all permitted",
            "train the next round without it",
        )
    if state is AdapterState.CANARY and (other := _in_state(connection, state)):
        raise refused(f"adapter {known.id!r} beside canary {other.id!r}", "one canary at once", "let that one end")
    if known.state is AdapterState.RETIRED:
        return
    verdicts = _verdicts(connection, known.id)
    if state is AdapterState.LIVE and (refusal := _refusal(verdicts)):
        raise refused(f"adapter {known.id!r}, {refusal}", "files that can be read", "take it back, and stage it anew")
    said = [verdict for verdict in verdicts if verdict.stage is NEEDS[state]]
    if not said or not said[-1].passed:
        why = (
            f"whose last {NEEDS[state]} verdict is: {said[-1].reason}" if said else f"without a {NEEDS[state]} verdict"
        )
        raise refused(f"adapter {known.id!r}, {why}", "a verdict that it passed", "let it be judged first")


def _append(connection: Connection, verdict: VerdictRow) -> None:
    _known(connection, verdict.adapter_id)
    before = _verdicts(connection, verdict.adapter_id)
    # The last one holds, so no two may have the same time.
    at = max(verdict.at, before[-1].at + 1e-3) if before else verdict.at
    connection.execute(insert(schema.verdicts), [msgspec.to_builtins(verdict) | {"at": at}])


def _learned(connection: Connection, adapter_id: str, sessions: Iterable[str]) -> None:
    links, stones = schema.adapter_sessions, schema.tombstones
    known = set(connection.scalars(select(links.c.session_id).where(links.c.adapter_id == adapter_id)))
    deleted = set(connection.scalars(select(stones.c.session_id)))
    asked = set(sessions)
    new = [{"adapter_id": adapter_id, "session_id": session} for session in sorted(asked - known - deleted)]
    if new:
        connection.execute(insert(links), new)
    if asked & deleted:
        connection.execute(update(schema.adapters).where(schema.adapters.c.id == adapter_id).values(withdrawn=True))


def _find(connection: Connection, adapter_id: str) -> AdapterRow | None:
    row = connection.execute(select(schema.adapters).where(schema.adapters.c.id == adapter_id)).mappings().first()
    return None if row is None else _row(row)


def _known(connection: Connection, adapter_id: str) -> AdapterRow:
    row = _find(connection, adapter_id)
    if row is None:
        raise refused(f"adapter {adapter_id[:80]!r}", "one that is in the journal", "`adapters list` names them")
    return row


def _in_state(connection: Connection, state: AdapterState) -> AdapterRow | None:
    table = schema.adapters
    row = connection.execute(select(table).where(table.c.state == state.value)).mappings().first()
    return None if row is None else _row(row)


def _predecessor(connection: Connection, checkpoint: str) -> Any:
    table = schema.adapters
    fit = (table.c.state == AdapterState.RETIRED.value, table.c.checkpoint == checkpoint, table.c.withdrawn.is_(False))
    return connection.scalar(select(table.c.id).where(*fit).order_by(table.c.changed_at.desc()).limit(1))


def _verdicts(connection: Connection, adapter_id: str) -> tuple[VerdictRow, ...]:
    table = schema.verdicts
    rows = connection.execute(select(table).where(table.c.adapter_id == adapter_id).order_by(table.c.at)).mappings()
    return tuple(VerdictRow(**dict(row) | {"stage": VerdictStage(row["stage"])}) for row in rows)


def _refusal(said: tuple[VerdictRow, ...]) -> str:
    return next((verdict.reason for verdict in reversed(said) if verdict.figures == BY_SERVER), "")


def _row(row: RowMapping) -> AdapterRow:
    return AdapterRow(**dict(row) | {"state": AdapterState(row["state"])})
