"""Signals that are found after a call has ended, by a program that has more time than the server.

It knows the table of signals and no rule.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Engine, delete, func, insert, select

from server.journal import schema
from server.journal.errors import UnknownSessionError
from server.journal.records import signal_row
from server.signals import Signal, SignalKind

__all__ = ["replace_signals"]


def replace_signals(engine: Engine, session: str, kind: SignalKind, found: Sequence[Signal]) -> list[Signal]:
    """Put all of a call's signals of one kind in place of those there are, in one transaction.

    They are numbered after the others. Returns them as they are kept. Raises `UnknownSessionError`, so that nothing is
    written for a call that was deleted meanwhile.
    """
    table = schema.signals
    of_session = table.c.session_id == session
    held = select(schema.sessions.c.id).where(schema.sessions.c.id == session).with_for_update()
    with engine.begin() as connection:
        connection.execute(delete(table).where(of_session, table.c.kind == str(kind)))
        if connection.scalar(held) is None:
            raise UnknownSessionError(session)
        first = 1 + (connection.scalar(select(func.max(table.c.number)).where(of_session)) or 0)
        kept = [msgspec.structs.replace(each, id=number) for number, each in enumerate(found, first)]
        if kept:
            connection.execute(insert(table), [signal_row(session, each) for each in kept])
    return kept
