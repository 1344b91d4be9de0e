"""Deletion for good: rows, write-ahead log and, by way of the key, every backup. Also retention and export.

A tombstone says what was deleted and stays; pairs made from the session go with it, and every adapter that learned from
it is marked, so that the next round leaves it behind. The order is: rows and tombstone in one transaction, then the
key, then the log; `finish` repeats what a crash left undone.
"""

import base64
import time
from collections.abc import Callable, Iterable

import msgspec
from sqlalchemy import Connection, Engine, delete, insert, select, update

from server.journal import schema
from server.journal.database import purge
from server.journal.errors import UnknownSessionError
from server.journal.keys import KeyRing
from server.journal.reader import JournalReader

__all__ = ["Removal", "export"]

_OF_A_SESSION = (
    schema.frames,
    schema.signals,
    schema.consents,
    schema.adapter_changes,
    schema.pairs,
    schema.adapter_sessions,
)


class Removal:
    """Deletes sessions. Any process may, also while the server writes."""

    def __init__(self, engine: Engine, keys: KeyRing, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._keys = keys
        self._clock = clock

    def session(self, session: str, *, reason: str = "asked") -> int:
        """Delete one session. Returns how many adapters had learned from it. Raises `UnknownSessionError`."""
        with self._engine.begin() as connection:
            marked = self._bury(connection, session, reason)
        if marked is None:
            raise UnknownSessionError(session)
        self._forget([session])
        return marked

    def user(self, user_hash: str, *, reason: str = "asked") -> list[str]:
        """Delete all sessions of one caller. Returns their ids. Anonymous callers cannot be told apart: give ids."""
        if not user_hash:
            return []
        ids = schema.sessions.c.id
        query = select(ids).where(schema.sessions.c.user_hash == user_hash).order_by(ids)  # the order `hold` has
        with self._engine.begin() as connection:
            found = list(connection.scalars(query))
            buried = [session for session in found if self._bury(connection, session, reason) is not None]
        self._forget(buried)
        return buried

    def sweep(self, *, older_than_s: float, until: Callable[[], bool] = lambda: False) -> list[str]:
        """Delete sessions that began so long ago and have ended. Returns their ids.

        One after the other, so that nobody who writes waits long, until `until` says that there is no more time.
        """
        table = schema.sessions
        old = table.c.started_at < self._clock() - older_than_s
        with self._engine.connect() as connection:
            found = list(connection.scalars(select(table.c.id).where(old, table.c.ended_at.is_not(None))))
        swept = []
        for session in found:
            if until():
                break
            with self._engine.begin() as connection:
                gone = self._bury(connection, session, "retention") is None
            if not gone:
                swept.append(session)
        self._forget(swept)
        return swept

    def finish(self) -> list[str]:
        """Destroy keys that outlived their session's rows: a crash came between. Returns whose."""
        with self._engine.connect() as connection:
            buried = set(connection.scalars(select(schema.tombstones.c.session_id)))
        left = [session for session in self._keys if session in buried]
        self._forget(left)
        return left

    def _bury(self, connection: Connection, session: str, reason: str) -> int | None:
        """Delete the rows. Returns how many adapters had learned from them; None when they are gone already."""
        if not connection.execute(delete(schema.sessions).where(schema.sessions.c.id == session)).rowcount:
            return None
        learned = select(schema.adapter_sessions.c.adapter_id).where(schema.adapter_sessions.c.session_id == session)
        adapters = list(connection.scalars(learned))
        if adapters:
            connection.execute(update(schema.adapters).where(schema.adapters.c.id.in_(adapters)).values(withdrawn=True))
        for table in _OF_A_SESSION:
            connection.execute(delete(table).where(table.c.session_id == session))
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
            "adapter_changes": reader.adapter_changes(session),
            "signals": reader.signals(session),
            "ticks": columns.ticks_T.tolist(),
            "tokens": base64.b64encode(columns.tokens_TK.astype("<i2").tobytes()).decode(),
            "tokens_format": f"base64 of int16 little-endian [{len(columns.ticks_T)}, {about.codebooks}]",
            "logprobs": [round(float(each), 6) for each in columns.logprob_T],
        }
    )
