"""Reads the journal while it is written: sessions, what was said in them, what happened, and whether all is whole.

Any process may read. It knows tables and keys, and nothing of audio.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Engine, func, select
from sqlalchemy.engine import RowMapping

from server.journal import schema
from server.journal.errors import JournalError, KeyGoneError, UnknownSessionError
from server.journal.keys import KeyRing
from server.journal.records import AdapterChange, Columns, unpack
from server.signals import Signal, SignalKind, State

__all__ = ["Fault", "JournalReader", "SessionRow", "Stats"]


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `sessions`, where each field is described."""

    id: str
    user_hash: str
    started_at: float
    ended_at: float | None
    end_reason: str
    keep: bool
    train: bool
    checkpoint: str
    base_sha256: str
    cache_dtype: str
    adapter: str
    version: str
    detector: str
    seed: int
    sampling: str
    codebooks: int
    model_codebooks: int
    frame_rate: float
    first_tick: int

    def is_of(self, model: str, base_sha256: str) -> bool:
        """Whether it was held with these weights; a call kept before they were noted is known by the name alone."""
        return self.base_sha256 == base_sha256 if self.base_sha256 else self.checkpoint == model


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it should be."""

    session: str
    what: str


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What there is."""

    sessions: int
    trainable: int
    seconds: float
    frames: int
    bytes: int
    """Of sealed frames."""
    oldest_at: float | None
    deleted: int
    pairs: int
    adapters: int
    signals: dict[str, int]
    """Final signals by kind."""


class JournalReader:
    """Looks things up. Safe beside the writer and other readers."""

    def __init__(self, engine: Engine, keys: KeyRing) -> None:
        self._engine = engine
        self._keys = keys

    def sessions(self, *, user_hash: str | None = None, trainable: bool = False, limit: int = 1000) -> list[SessionRow]:
        """The newest sessions first."""
        query = select(schema.sessions).order_by(schema.sessions.c.started_at.desc()).limit(limit)
        if user_hash is not None:
            query = query.where(schema.sessions.c.user_hash == user_hash)
        if trainable:
            query = query.where(schema.sessions.c.train.is_(True))
        with self._engine.connect() as connection:
            return [_session(row) for row in connection.execute(query).mappings()]

    def session(self, session: str) -> SessionRow:
        """One session. Raises `UnknownSessionError`."""
        with self._engine.connect() as connection:
            row = connection.execute(select(schema.sessions).where(schema.sessions.c.id == session)).mappings().first()
        if row is None:
            raise UnknownSessionError(session)
        return _session(row)

    def columns(self, session: str) -> Columns:
        """What both sides said, as tokens. Raises `UnknownSessionError`, `KeyGoneError` or `JournalError`."""
        about = self.session(session)
        ticks, tokens, logprobs = [np.zeros(0, np.int64)], [np.zeros((0, about.codebooks), np.int16)], []
        logprobs.append(np.zeros(0, np.float32))
        for first, count, plain in self._opened(session):
            try:
                some_tokens, some_logprobs = unpack(plain, count=count, codebooks=about.codebooks)
            except ValueError as problem:
                raise JournalError(
                    got=str(problem), expected="whole frames", remedy="run `journal verify`"
                ) from problem
            ticks.append(np.arange(first, first + count))
            tokens.append(some_tokens)
            logprobs.append(some_logprobs)
        return Columns(
            ticks_T=np.concatenate(ticks), tokens_TK=np.concatenate(tokens), logprob_T=np.concatenate(logprobs)
        )

    def signals(self, session: str) -> list[Signal]:
        """The last word on every signal, by time; those that were withdrawn are left out."""
        table = schema.signals
        query = select(table).where(table.c.session_id == session).order_by(table.c.number, table.c.revision)
        with self._engine.connect() as connection:
            latest = {row["number"]: _signal(row) for row in connection.execute(query).mappings()}
        kept = [signal for signal in latest.values() if signal.state is not State.WITHDRAWN]
        return sorted(kept, key=lambda signal: signal.t0)

    def adapter_changes(self, session: str) -> list[AdapterChange]:
        """Adapters that took over in the middle of the call, in order. `SessionRow.adapter` was the first."""
        table = schema.adapter_changes
        query = select(table.c.step, table.c.adapter_id).where(table.c.session_id == session).order_by(table.c.step)
        with self._engine.connect() as connection:
            return [AdapterChange(step=step, adapter=adapter) for step, adapter in connection.execute(query)]

    def stats(self) -> Stats:
        """Count everything."""
        sessions, frames, signals = schema.sessions, schema.frames, schema.signals
        with self._engine.connect() as connection:
            count, oldest = connection.execute(select(func.count(), func.min(sessions.c.started_at))).one()
            trainable = connection.scalar(select(func.count()).where(sessions.c.train.is_(True)))
            length, size = connection.execute(
                select(
                    func.coalesce(func.sum(frames.c.count), 0), func.coalesce(func.sum(func.length(frames.c.sealed)), 0)
                )
            ).one()
            rate = connection.scalar(select(func.max(sessions.c.frame_rate))) or 12.5
            by_kind = connection.execute(
                select(signals.c.kind, func.count())
                .where(signals.c.state == State.FINAL.value)
                .group_by(signals.c.kind)
                .order_by(signals.c.kind)
            )
            others = [
                connection.scalar(select(func.count()).select_from(table)) or 0
                for table in (schema.tombstones, schema.pairs, schema.adapters)
            ]
            kinds = {kind: int(number) for kind, number in by_kind}
        return Stats(
            sessions=count,
            trainable=trainable or 0,
            seconds=int(length) / rate,
            frames=int(length),
            bytes=int(size),
            oldest_at=oldest,
            deleted=others[0],
            pairs=others[1],
            adapters=others[2],
            signals=kinds,
        )

    def verify(self) -> Iterator[Fault]:
        """Open every row of every session and say what is wrong: damage, missing keys, gaps, keys without a session."""
        known = set()
        for about in self.sessions(limit=1_000_000_000):
            known.add(about.id)
            yield from self._verify(about)
        for session in self._keys:
            if session not in known:
                yield Fault(session=session, what="a key without a session")
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                answer = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
            if answer != "ok":
                yield Fault(session="", what=f"the database: {answer}")

    def _verify(self, about: SessionRow) -> Iterator[Fault]:
        due = about.first_tick
        try:
            for first, count, plain in self._opened(about.id):
                unpack(plain, count=count, codebooks=about.codebooks)
                if first != due:
                    yield Fault(session=about.id, what=f"a gap of {first - due} frames before frame {first}")
                due = first + count
        except (KeyGoneError, JournalError, ValueError) as problem:
            yield Fault(session=about.id, what=str(problem))

    def _opened(self, session: str) -> Iterator[tuple[int, int, bytes]]:
        """First tick, count and opened bytes of each row, in order."""
        table = schema.frames
        query = (
            select(table.c.first_tick, table.c.count, table.c.sealed)
            .where(table.c.session_id == session)
            .order_by(table.c.first_tick)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        key = self._keys.get(session)
        for first, count, sealed in rows:
            yield first, count, key.open(f"frames/{first}", bytes(sealed))


def _session(row: RowMapping) -> SessionRow:
    return SessionRow(**row)


def _signal(row: RowMapping) -> Signal:
    values: dict[str, Any] = {name: row[name] for name in ("t0", "t1", "confidence", "revision", "latency_s", "of")}
    return Signal(
        id=row["number"],
        kind=SignalKind(row["kind"]),
        state=State(row["state"]),
        value=row["value"] or None,
        detector=row["detector"],
        **values,
    )
