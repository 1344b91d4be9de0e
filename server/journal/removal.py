"""Deletion for good: rows, write-ahead log and, by way of the key, every backup. Also retention and export.

A tombstone says what was deleted and stays; pairs made from the session go with it, and every adapter that learned from
it is marked, so that the next round leaves it behind. The order is: rows and tombstone in one transaction, then the
key, then the log; `finish` repeats what a crash left undone.
"""

import base64
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, delete, insert, select, update

from server.journal import schema
from server.journal.database import purge
from server.journal.errors import UnknownSessionError
from server.journal.keys import KeyRing
from server.journal.reader import JournalReader

__all__ = ["Removal", "export"]

_OF_A_SESSION = (schema.frames, schema.signals, schema.consents, schema.pairs, schema.adapter_sessions)


class Removal:
    """Deletes sessions. Any process may, also while the server writes."""

    def __init__(self, engine: Engine, keys: KeyRing, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._keys = keys
        self._clock = clock

    def session(self, session: str, *, reason: str = "asked") -> int:
        """Delete one session. Returns how many adapters had learned from it. Raises `UnknownSessionError`."""
        with self._engine.begin() as connection:
            if connection.scalar(select(schema.sessions.c.id).where(schema.sessions.c.id == session)) is None:
                raise UnknownSessionError(session)
            marked = self._bury(connection, session, reason)
        self._forget([session])
        return marked

    def user(self, user_hash: str, *, reason: str = "asked") -> list[str]:
        """Delete all sessions of one caller. Returns their ids. Anonymous callers cannot be told apart: give ids."""
        if not user_hash:
            return []
        return self._all(select(schema.sessions.c.id).where(schema.sessions.c.user_hash == user_hash), reason)

    def sweep(self, *, older_than_s: float) -> list[str]:
        """Delete sessions that began so long ago and have ended. Returns their ids."""
        table = schema.sessions
        old = table.c.started_at < self._clock() - older_than_s
        return self._all(select(table.c.id).where(old, table.c.ended_at.is_not(None)), "retention")

    def finish(self) -> list[str]:
        """Destroy keys that outlived their session's rows: a crash came between. Returns whose."""
        with self._engine.connect() as connection:
            buried = set(connection.scalars(select(schema.tombstones.c.session_id)))
        left = [session for session in self._keys if session in buried]
        self._forget(left)
        return left

    def _all(self, query: Any, reason: str) -> list[str]:
        with self._engine.begin() as connection:
            found = list(connection.scalars(query))
            for session in found:
                self._bury(connection, session, reason)
        self._forget(found)
        return found

    def _bury(self, connection: Connection, session: str, reason: str) -> int:
        learned = select(schema.adapter_sessions.c.adapter_id).where(schema.adapter_sessions.c.session_id == session)
        adapters = list(connection.scalars(learned))
        if adapters:
            connection.execute(update(schema.adapters).where(schema.adapters.c.id.in_(adapters)).values(withdrawn=True))
        for table in _OF_A_SESSION:
            connection.execute(delete(table).where(table.c.session_id == session))
        connection.execute(delete(schema.sessions).where(schema.sessions.c.id == session))
        stone = {"session_id": session, "at": self._clock(), "reason": reason, "adapters": len(adapters)}
        connection.execute(insert(schema.tombstones), [stone])
        return len(adapters)

    def _forget(self, sessions: Iterable[str]) -> None:
        destroyed = [self._keys.destroy(session) for session in sessions]
        if destroyed:
            purge(self._engine)


def export(reader: JournalReader, session: str) -> bytes:
    """Everything that is known of a session, as JSON: for the person whose it is. Raises `JournalError`."""
    about, columns = reader.session(session), reader.columns(session)
    return msgspec.json.encode(
        {
            "session": about,
            "signals": reader.signals(session),
            "ticks": columns.ticks_T.tolist(),
            "tokens": base64.b64encode(columns.tokens_TK.astype("<i2").tobytes()).decode(),
            "tokens_format": f"base64 of int16 little-endian [{len(columns.ticks_T)}, {about.codebooks}]",
            "logprobs": [round(float(each), 6) for each in columns.logprob_T],
        }
    )
