"""Which pairs a round takes: as much as the gate lets one person teach, everybody in turn, the rest later."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_align.gate_people import PeopleLimits, check_people
from online_align.pair_mix import fair_share
from online_align.pair_store import PairSummary
from online_align.probes import Agreement
from online_align.records import Evidence, PairKind
from online_align.verdicts import Outcome
from online_align.waiting import waiting_of


def summary(name: str, user: str, session: str = "") -> PairSummary:
    return PairSummary(
        id=name, session=session or f"call-{name}", user_hash=user, kind=PairKind.CUT_OFF, made_at=0.0, at_tick=0,
        heldout=False, policy="", evidence=Evidence(rule="test", signals=(), confidence=1.0), fingerprint="",
    )  # fmt: skip


def nothing(_user: str) -> Agreement:
    return Agreement(pairs=0, people=0, share=None, low=None, high=None, by_kind={})


def gate_says(users: list[str]) -> Outcome:
    return check_people(users, nothing, nothing, PeopleLimits())[0].outcome


def pairs_of(users: list[str]) -> list[PairSummary]:
    return [summary(f"{number:03}", user) for number, user in enumerate(users)]


def taken(users: list[str], most: int = 512) -> list[str]:
    there = pairs_of(users)
    by_id = {each.id: each.user_hash for each in there}
    return [by_id[each] for each in waiting_of(there, consumed=(), learned_from=(), most=most).ids]


def test_one_with_three_tenths_is_cut_down_to_what_the_gate_lets_pass() -> None:
    users = ["loud"] * 30 + [f"user{number % 10}" for number in range(70)]
    assert gate_says(users) is Outcome.FAILED
    took = Counter(taken(users))
    assert took["loud"] == 23
    assert took.total() == 93, "and everything of the others"
    assert gate_says(list(took.elements())) is Outcome.PASSED


def test_among_a_few_people_nobody_is_cut_down() -> None:
    assert Counter(taken(["loud"] * 30 + ["a", "b", "c"])) == {"loud": 30, "a": 1, "b": 1, "c": 1}


def test_of_too_many_everybody_in_turn() -> None:
    users = ["loud"] * 30 + ["a", "b", "c", "d", "e"] * 2
    assert Counter(taken(users, most=12)) == {"loud": 2, "a": 2, "b": 2, "c": 2, "d": 2, "e": 2}
    assert len(taken(["loud"] * 30, most=8)) == 8


def test_what_the_parent_learned_counts() -> None:
    old = pairs_of(["loud"] * 4 + ["a", "b", "c", "d"] * 3)
    new = [summary(f"new{number}", user) for number, user in enumerate(["loud", "a"])]
    sessions = [each.session for each in old]
    ids = {each.id for each in old}
    assert waiting_of([*old, *new], consumed=ids, learned_from=sessions, most=9).ids == ["new1"]
    assert waiting_of([*old, *new], consumed=ids, learned_from=(), most=9).ids == ["new0", "new1"], "another parent"


def test_a_calls_pairs_are_taken_together_and_the_rest_is_told() -> None:
    there = [summary("one", "a", "call"), summary("two", "a", "call"), summary("three", "b")]
    found = waiting_of(there, consumed=(), learned_from=(), most=2)
    assert (found.ids, found.later) == (["one", "two"], 1)
    assert waiting_of(there, consumed=("three",), learned_from=(), most=1).ids == ["one", "two"], "never nothing"


@pytest.mark.parametrize("people", [5])
@given(
    counts=st.lists(st.lists(st.integers(1, 2), max_size=30), min_size=1, max_size=9),
    learned=st.lists(st.integers(0, 6), max_size=9),
)
def test_whatever_is_taken_the_gate_does_not_refuse_for_it(
    people: int, counts: list[list[int]], learned: list[int]
) -> None:
    """Unless the parent alone would be refused, which nothing that is added can mend at once."""
    calls = [(f"user{user}", pairs) for user, theirs in enumerate(counts) for pairs in theirs]
    before = Counter({f"user{user}": count for user, count in enumerate(learned) if count})
    kept = fair_share(calls, before, people=people)
    after = before + Counter()
    for place in kept:
        after[calls[place][0]] += calls[place][1]
    if len(after) >= people and kept and max(before.values(), default=0) <= 0.25 * after.total():
        assert max(after.values()) <= 0.25 * after.total()
    if len(before.keys() | {user for user, _ in calls}) < people:
        assert len(kept) == len(calls)
