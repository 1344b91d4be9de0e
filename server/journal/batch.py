"""The rows of one group commit, and how they reach the tables.

Frames are the bulk: they go through the driver's own `executemany`, which costs a third of a compiled statement per
row. It knows tables, not threads.
"""

import functools
from typing import Any

from sqlalchemy import Connection, Table, insert, update

from server.journal import schema
from server.journal.transactions import hold

__all__ = ["Batch"]

_FRAME_COLUMNS = ("session_id", "first_tick", "count", "sealed")


class Batch:
    """Rows that are to become durable together."""

    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self.consents: list[dict[str, Any]] = []
        self.frames: list[tuple[str, int, int, bytes]] = []
        self.signals: list[dict[str, Any]] = []
        self.adapters: list[dict[str, Any]] = []
        """Changes of adapter."""
        self.changes: list[tuple[str, dict[str, Any]]] = []
        """Sessions and what changes in their row."""

    def __bool__(self) -> bool:
        return bool(self.sessions or self.consents or self.frames or self.signals or self.adapters or self.changes)

    @property
    def frame_count(self) -> int:
        """Frames in it."""
        return sum(count for _, _, count, _ in self.frames)

    def without(self, gone: frozenset[str]) -> None:
        """Leave out what belongs to sessions that were deleted meanwhile."""
        self.sessions = [row for row in self.sessions if row["id"] not in gone]
        for table in (self.consents, self.signals, self.adapters):
            table[:] = [row for row in table if row["session_id"] not in gone]
        self.frames = [row for row in self.frames if row[0] not in gone]
        self.changes = [change for change in self.changes if change[0] not in gone]

    def write(self, connection: Connection) -> None:
        """Insert everything; the caller commits."""
        for table, rows in (
            (schema.sessions, self.sessions),
            (schema.consents, self.consents),
            (schema.signals, self.signals),
            (schema.adapter_changes, self.adapters),
        ):
            if rows:
                connection.execute(insert(table), rows)
        if self.frames:
            statement = _insertion(schema.frames, _FRAME_COLUMNS, connection.dialect.name)
            connection.exec_driver_sql(statement, self.frames)
        for session, values in self.changes:
            connection.execute(update(schema.sessions).where(schema.sessions.c.id == session).values(values))

    def buried(self, connection: Connection) -> frozenset[str]:
        """Of which sessions that it adds to somebody has deleted; of the others nobody can until the caller commits."""
        rows = (*self.consents, *self.signals, *self.adapters)
        known = {row["session_id"] for row in rows} | {row[0] for row in self.frames} | {row[0] for row in self.changes}
        known -= {row["id"] for row in self.sessions}
        return frozenset(known) - hold(connection, known) if known else frozenset()


@functools.cache
def _insertion(table: Table, columns: tuple[str, ...], dialect: str) -> str:
    mark = "?" if dialect == "sqlite" else "%s"
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608 - names of ours
