"""Transactions in which what was looked at stays true to their end.

By themselves they do not: Python's driver of SQLite begins one at the first change, and in PostgreSQL each statement
sees what others have committed by then. Between a look and what follows from it a call may be deleted, and rows written
then would outlive it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, select

from server.journal import schema

__all__ = ["hold", "writing"]

_AT_ONCE: Final = 10_000
"""Databases take some ten thousands of values in one statement."""


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end of the block. In SQLite nobody else writes from its beginning on."""
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def hold(connection: Connection, sessions: Iterable[str]) -> frozenset[str]:
    """Which of these sessions are there. Nobody deletes them before the transaction, one of `writing`, ends.

    Who also locks adapters does so afterwards, as deleting does: otherwise two could wait for each other.
    """
    ids, table = sorted(set(sessions)), schema.sessions
    there: set[str] = set()
    for first in range(0, len(ids), _AT_ONCE):
        some = table.c.id.in_(ids[first : first + _AT_ONCE])
        there.update(connection.scalars(select(table.c.id).where(some).order_by(table.c.id).with_for_update()))
    return frozenset(there)
