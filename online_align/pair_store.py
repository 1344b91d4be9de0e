"""Preference pairs in the journal: sealed with the key of the call they were made from, so that they go with it.

What a pair is, is `records`' business; how it is made, that of `pairs`. Deleting a session deletes its pairs, and with
its key every copy of them (`server.journal.removal`).
"""

import logging
from collections.abc import Collection, Iterable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, select, update

from online_align.records import Evidence, Pair, PairKind, Reference, Side
from server.journal import Journal, JournalError, KeyGoneError, schema
from server.journal.transactions import hold, writing

__all__ = ["PairStore", "PairSummary", "UnknownPairError"]

log = logging.getLogger(__name__)

_FORMAT: Final = 1
_TABLE: Final = schema.pairs


class UnknownPairError(JournalError):
    """No such pair in the journal."""

    def __init__(self, pair: str) -> None:
        super().__init__(
            got=f"pair {pair!r}",
            expected="one that is in the journal",
            remedy="`duologue-align pairs --list` names them",
        )


class PairSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What can be known of a pair without opening it."""

    id: str
    session: str
    user_hash: str
    kind: PairKind
    made_at: float
    at_tick: int
    heldout: bool
    policy: str
    evidence: Evidence
    fingerprint: str
    """Equal for pairs that teach the same; empty where nobody looked."""
    chosen_logp: float | None = None
    rejected_logp: float | None = None


class _Array(msgspec.Struct, frozen=True, array_like=True):
    """A little-endian array."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What only the key of the session opens."""

    format: int
    event: int
    context: _Array
    chosen: _Array
    chosen_words: str
    rejected: _Array
    rejected_words: str
    reference: tuple[str, str, _Array, _Array] | None = None


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """The column `evidence`: why, and what it teaches."""

    evidence: Evidence
    fingerprint: str = ""


class PairStore:
    """The journal's pairs. Any process may read and write; a pair is written once."""

    def __init__(self, journal: Journal) -> None:
        self._engine = journal.engine
        self._keys = journal.keys

    def add(self, pairs: Iterable[Pair], *, fingerprints: dict[str, str] | None = None) -> int:
        """Keep pairs, all at once, but for those whose id is known or whose session is gone.

        Returns how many are new.
        """
        rows = {}
        for pair in pairs:
            try:
                sealed = self._keys.get(pair.session).seal(_place(pair.id), _pack(pair))
            except KeyGoneError:
                continue  # deleted since the pair was begun
            rows[pair.id] = _row(pair, sealed, (fingerprints or {}).get(pair.id, ""))
        if not rows:
            return 0
        with writing(self._engine) as connection:
            there = hold(connection, [row["session_id"] for row in rows.values()])
            known = set(connection.scalars(select(_TABLE.c.id).where(_TABLE.c.id.in_(rows))))
            new = [row for name, row in rows.items() if name not in known and row["session_id"] in there]
            if new:
                connection.execute(insert(_TABLE), new)
        return len(new)

    def ids(self) -> set[str]:
        """Every pair's id."""
        with self._engine.connect() as connection:
            return set(connection.scalars(select(_TABLE.c.id)))

    def summaries(
        self, *, heldout: bool | None = None, kinds: Collection[PairKind] | None = None, limit: int | None = None
    ) -> list[PairSummary]:
        """What is known of pairs, the oldest first; with a limit, of the newest so many. Opens nothing."""
        columns = [column for column in _TABLE.c if column.name != "sealed"]
        query = _chosen(select(*columns), heldout, kinds, limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [_summary(row) for row in reversed(rows)]

    def read(
        self, *, heldout: bool | None = None, kinds: Collection[PairKind] | None = None, limit: int | None = None
    ) -> list[Pair]:
        """Open pairs, the oldest first; with a limit, the newest so many. Those whose key is gone are left out.

        Raises `JournalError` for damaged rows.
        """
        with self._engine.connect() as connection:
            rows = connection.execute(_chosen(select(_TABLE), heldout, kinds, limit)).mappings().all()
        return [pair for row in reversed(rows) if (pair := self._open(row)) is not None]

    def get(self, pair_id: str) -> Pair:
        """Open one pair. Raises `UnknownPairError`, also for one whose session is deleted, or `JournalError`."""
        with self._engine.connect() as connection:
            row = connection.execute(select(_TABLE).where(_TABLE.c.id == pair_id)).mappings().first()
        pair = None if row is None else self._open(row)
        if pair is None:
            raise UnknownPairError(pair_id)
        return pair

    def readable(self, ids: Iterable[str]) -> list[Pair]:
        """Those of these pairs that are there and can be opened."""
        found = []
        for each in ids:
            try:
                found.append(self.get(each))
            except JournalError as problem:
                log.info("pair %s is left out: %s", each, problem)
        return found

    def set_reference(self, pair_id: str, reference: Reference) -> None:
        """Keep what the reference model thinks of both sides. Raises `UnknownPairError` or `JournalError`."""
        pair = msgspec.structs.replace(self.get(pair_id), reference=reference)
        chosen, rejected = _sums(reference)
        try:
            sealed = self._keys.get(pair.session).seal(_place(pair_id), _pack(pair))
        except KeyGoneError as problem:
            raise UnknownPairError(pair_id) from problem
        values = {"sealed": sealed, "chosen_logp": chosen, "rejected_logp": rejected}
        with self._engine.begin() as connection:
            connection.execute(update(_TABLE).where(_TABLE.c.id == pair_id).values(**values))

    def _open(self, row: Any) -> Pair | None:
        try:
            plain = self._keys.get(row["session_id"]).open(_place(row["id"]), bytes(row["sealed"]))
        except KeyGoneError:
            return None
        return _unpack(_summary(row), plain)


def _row(pair: Pair, sealed: bytes, fingerprint: str) -> dict[str, Any]:
    chosen, rejected = _sums(pair.reference)
    return {
        "id": pair.id,
        "session_id": pair.session,
        "user_hash": pair.user_hash,
        "kind": pair.kind.value,
        "made_at": pair.made_at,
        "at_tick": pair.at_tick,
        "heldout": pair.heldout,
        "policy": pair.policy,
        "evidence": msgspec.json.encode(_Known(evidence=pair.evidence, fingerprint=fingerprint)).decode(),
        "chosen_logp": chosen,
        "rejected_logp": rejected,
        "sealed": sealed,
    }


def _place(pair_id: str) -> str:
    return f"pairs/{pair_id}"


def _chosen(query: Any, heldout: bool | None, kinds: Collection[PairKind] | None, limit: int | None) -> Any:
    if heldout is not None:
        query = query.where(_TABLE.c.heldout.is_(heldout))
    if kinds is not None:
        query = query.where(_TABLE.c.kind.in_([kind.value for kind in kinds]))
    return query.order_by(_TABLE.c.made_at.desc(), _TABLE.c.id.desc()).limit(limit)


def _summary(row: Any) -> PairSummary:
    known = msgspec.json.decode(row["evidence"], type=_Known)
    same = ("id", "user_hash", "made_at", "at_tick", "heldout", "policy", "chosen_logp", "rejected_logp")
    return PairSummary(
        session=row["session_id"],
        kind=PairKind(row["kind"]),
        evidence=known.evidence,
        fingerprint=known.fingerprint,
        **{name: row[name] for name in same},
    )


def _sums(reference: Reference | None) -> tuple[float | None, float | None]:
    if reference is None:
        return None, None
    return float(reference.chosen_T.sum(dtype=np.float64)), float(reference.rejected_T.sum(dtype=np.float64))


def _pack(pair: Pair) -> bytes:
    told = pair.reference
    return msgspec.msgpack.encode(
        _Sealed(
            format=_FORMAT,
            event=pair.event,
            context=_array(pair.context_PK),
            chosen=_array(pair.chosen.tokens_TK),
            chosen_words=pair.chosen.words,
            rejected=_array(pair.rejected.tokens_TK),
            rejected_words=pair.rejected.words,
            reference=None
            if told is None
            else (told.policy, told.base_sha256, _array(told.chosen_T), _array(told.rejected_T)),
        )
    )


def _unpack(about: PairSummary, plain: bytes) -> Pair:
    try:
        sealed = msgspec.msgpack.decode(plain, type=_Sealed)
        if sealed.format != _FORMAT:
            raise ValueError(f"format {sealed.format}")
        told = sealed.reference
        reference = None
        if told is not None:
            reference = Reference(
                policy=told[0], base_sha256=told[1], chosen_T=_plain(told[2], "<f4"), rejected_T=_plain(told[3], "<f4")
            )
        return Pair(
            id=about.id,
            session=about.session,
            user_hash=about.user_hash,
            kind=about.kind,
            made_at=about.made_at,
            at_tick=about.at_tick,
            event=sealed.event,
            policy=about.policy,
            heldout=about.heldout,
            evidence=about.evidence,
            context_PK=_plain(sealed.context, "<i2"),
            chosen=Side(tokens_TK=_plain(sealed.chosen, "<i2"), words=sealed.chosen_words),
            rejected=Side(tokens_TK=_plain(sealed.rejected, "<i2"), words=sealed.rejected_words),
            reference=reference,
        )
    except (msgspec.MsgspecError, ValueError) as problem:
        raise JournalError(
            got=f"pair {about.id} that cannot be read ({problem})",
            expected=f"a pair of format {_FORMAT}",
            remedy="delete it, or read it with the version that wrote it",
        ) from problem


def _array(array: NDArray[Any]) -> _Array:
    dtype = array.dtype.newbyteorder("<")
    return _Array(dtype.str, tuple(array.shape), np.ascontiguousarray(array, dtype).tobytes())


def _plain(array: _Array, dtype: str) -> NDArray[Any]:
    if array.dtype != dtype:
        raise ValueError(f"an array of {array.dtype}, not {dtype}")
    return np.frombuffer(array.data, dtype).reshape(array.shape).astype(np.dtype(dtype).newbyteorder("="))
