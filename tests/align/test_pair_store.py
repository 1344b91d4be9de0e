"""Pairs come back as they were put in, once, and go with their session."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sqlalchemy import Connection, select, update

from online_align import pair_store
from online_align.pair_store import PairStore, UnknownPairError
from online_align.records import Evidence, Pair, PairKind, Reference, Side
from server.journal import Journal, JournalError, open_journal, schema
from server.journal.transactions import hold
from tests.journal.calls import CODEBOOKS, record

SECRET_WORDS = "Reykjavik is the capital"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path / "data")
    record(opened, ["one", "two"], 8)
    yield opened
    opened.engine.dispose()


def pair(name: str, session: str = "one", *, kind: PairKind = PairKind.CUT_OFF, **more: object) -> Pair:
    rng = np.random.default_rng([*name.encode()])

    def columns(frames: int) -> np.ndarray:
        return rng.integers(-1, 2048, (frames, CODEBOOKS)).astype(np.int16)

    given: dict[str, object] = {
        "id": name, "session": session, "user_hash": "", "kind": kind, "made_at": 5.0, "at_tick": 6, "event": -3,
        "policy": "", "heldout": False, "context_PK": columns(6),
        "evidence": Evidence(rule="labels-1/cut_off", signals=(3, 4), confidence=0.7, scores={"chosen": 4.5}),
        "chosen": Side(tokens_TK=columns(9), words=SECRET_WORDS), "rejected": Side(tokens_TK=columns(4), words=""),
    }  # fmt: skip
    return Pair(**(given | more))  # type: ignore[arg-type]


def same(one: Pair, other: Pair) -> bool:
    plain = [
        field for field in Pair.__struct_fields__ if field not in ("context_PK", "chosen", "rejected", "reference")
    ]
    return (
        all(getattr(one, field) == getattr(other, field) for field in plain)
        and np.array_equal(one.context_PK, other.context_PK)
        and all(
            side.words == another.words
            and np.array_equal(side.tokens_TK, another.tokens_TK)
            and another.tokens_TK.dtype == np.int16
            for side, another in ((one.chosen, other.chosen), (one.rejected, other.rejected))
        )
    )


def test_what_was_put_in_comes_back(journal: Journal) -> None:
    store, first = PairStore(journal), pair("a")
    assert store.add([first, pair("b", "two", kind=PairKind.CONTENT, made_at=6.0)]) == 2
    found = store.read()
    assert [each.id for each in found] == ["a", "b"]
    assert same(found[0], first)
    assert found[0].reference is None
    assert same(store.get("a"), first)
    assert store.ids() == {"a", "b"}


def test_a_call_deleted_while_its_pair_is_put_in_takes_it_along(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion waits: a pair that it did not see would stay for good."""
    deleting, waited = threading.Thread(target=journal.removal.session, args=("one",)), []

    def begin(connection: Connection, sessions: Iterable[str]) -> frozenset[str]:
        there = hold(connection, sessions)
        deleting.start()
        deleting.join(0.5)
        waited.append(deleting.is_alive())
        return there

    monkeypatch.setattr(pair_store, "hold", begin)
    assert PairStore(journal).add([pair("a")]) == 1
    deleting.join()
    assert waited == [True]
    assert PairStore(journal).ids() == set()


def test_adding_twice_adds_nothing(journal: Journal) -> None:
    store = PairStore(journal)
    assert store.add([pair("a")]) == 1
    assert store.add([pair("a", made_at=99.0), pair("c")]) == 1
    assert store.get("a").made_at == 5.0


def test_filters_and_limits(journal: Journal) -> None:
    store = PairStore(journal)
    store.add(
        [
            pair("a", kind=PairKind.CUT_OFF, made_at=1.0),
            pair("b", kind=PairKind.CONTENT, made_at=2.0, heldout=True),
            pair("c", kind=PairKind.CUT_OFF, made_at=3.0),
        ]
    )
    assert [each.id for each in store.read(kinds=[PairKind.CUT_OFF])] == ["a", "c"]
    assert [each.id for each in store.read(heldout=True)] == ["b"]
    assert [each.id for each in store.read(heldout=False, limit=1)] == ["c"], "the newest"
    assert [each.id for each in store.summaries(limit=2)] == ["b", "c"]
    assert store.summaries()[0].evidence.signals == (3, 4)


def test_reference_log_probs_are_kept_beside_their_sums(journal: Journal) -> None:
    store = PairStore(journal)
    store.add([pair("a")])
    reference = Reference(
        policy="", base_sha256="0" * 64, chosen_T=np.full(9, -0.5, np.float32), rejected_T=np.full(4, -2, np.float32)
    )
    store.set_reference("a", reference)
    found = store.get("a")
    assert found.reference is not None
    assert np.array_equal(found.reference.chosen_T, reference.chosen_T)
    assert found.reference.base_sha256 == "0" * 64
    assert same(found, pair("a"))
    (summary,) = store.summaries()
    assert (summary.chosen_logp, summary.rejected_logp) == (-4.5, -8.0)
    with pytest.raises(UnknownPairError, match="pairs --list"):
        store.set_reference("nobody", reference)


def test_words_and_tokens_are_in_no_file_in_the_clear(journal: Journal, tmp_path: Path) -> None:
    store = PairStore(journal)
    store.add([pair("a")])
    tokens = pair("a").context_PK.tobytes()
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET_WORDS.encode() not in content
            assert tokens[:32] not in content


def test_pairs_go_with_their_session(journal: Journal) -> None:
    store = PairStore(journal)
    store.add([pair("a"), pair("b", "two")])
    journal.removal.session("one")
    assert [each.id for each in store.read()] == ["b"]
    assert store.ids() == {"b"}
    assert store.add([pair("a")]) == 0, "a session that is gone gets no pairs"
    with pytest.raises(UnknownPairError):
        store.get("a")


def test_without_its_key_a_pair_that_was_left_behind_says_nothing(journal: Journal) -> None:
    """As a backup from before the deletion would."""
    store = PairStore(journal)
    store.add([pair("a")])
    journal.keys.destroy("one")
    assert store.read() == []


def test_damage_is_told(journal: Journal) -> None:
    store = PairStore(journal)
    store.add([pair("a"), pair("b")])
    with journal.engine.begin() as connection:
        other = connection.scalar(select(schema.pairs.c.sealed).where(schema.pairs.c.id == "b"))
        connection.execute(update(schema.pairs).where(schema.pairs.c.id == "a").values(sealed=other))
    with pytest.raises(JournalError, match="pairs/a"):
        store.get("a")
    assert msgspec.json.encode(store.summaries())
