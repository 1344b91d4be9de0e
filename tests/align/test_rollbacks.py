"""The simulation of the release's errors: it decides as the code that serves, and at fixed seeds errors are rare."""

import json
from collections import Counter

import msgspec
import numpy as np
import pytest
from sqlalchemy import insert, update

from online_align.__main__ import main
from online_align.canary import CanarySettings, Decision, Group, read
from online_align.evaluate.rollbacks import (
    SCENARIOS,
    Calls,
    Scenario,
    World,
    _canary,
    _People,
    _people,
    _watched,
    experiment,
    looks_worth_taking,
)
from online_align.observations import CallCount, counted_people
from online_align.release import review
from online_align.watch import watch
from server.journal import Journal, schema
from server.journal.registry import AdapterState
from tests.align.test_release import canary_of
from tests.journal.calls import session
from tests.journal.conftest import sqlite_journal

__all__ = ["sqlite_journal"]

SETTINGS = CanarySettings()
LASTS_S = SETTINGS.longest_s
CROWD = World(people=80, complaints=0.2)


def share(decision: Decision, scenario: Scenario, experiments: int) -> float:
    return float(np.mean([experiment(scenario, seed).decision is decision for seed in range(experiments)]))


def test_nothing_changed_and_it_stays() -> None:
    """Forty populations, of which each may err with 5 %: seven or more errors would be a chance of 0.3 %."""
    assert share(Decision.HARM, SCENARIOS["live_same_100"], 40) <= 6 / 40
    assert share(Decision.HARM, SCENARIOS["live_same_few"], 40) <= 6 / 40
    assert share(Decision.HARM, SCENARIOS["canary_same_100"], 40) <= 6 / 40


def test_complaints_doubled_and_it_is_taken_back() -> None:
    doubled = SCENARIOS["live_doubled_20_to_40"]
    ends = [experiment(doubled, seed) for seed in range(20)]
    seen = [each for each in ends if each.decision is Decision.HARM]
    assert len(seen) >= 16
    assert all(SETTINGS.least_users <= each.users <= 300 for each in seen)
    assert all(0 < each.days <= 14 for each in seen)
    assert share(Decision.PROMOTE, SCENARIOS["canary_doubled_300"], 20) <= 4 / 20


def test_the_same_seed_is_the_same_experiment() -> None:
    scenario = SCENARIOS["live_doubled_100"]
    assert [experiment(scenario, seed) for seed in range(3)] == [experiment(scenario, seed) for seed in range(3)]
    assert len({experiment(scenario, seed).days for seed in range(12)}) > 1


@pytest.mark.parametrize("new_mean", [0.02, 0.1, 0.3])
def test_no_look_that_decides_is_skipped(new_mean: float) -> None:
    """`read` after every single person, against the looks that the running sums find."""
    rng = np.random.default_rng(8)
    new_N = rng.random(260) < 0.4
    shares_N = rng.binomial(5, np.where(new_N, new_mean, 0.1)) / 5
    plain = []
    for look in range(260):
        heard, new = shares_N[: look + 1], new_N[: look + 1]
        control, canary = (Group(shares=tuple(heard[new == which])) for which in (False, True))
        if read(control, canary, SETTINGS).decision is not Decision.WAIT:
            plain.append(look)
    assert looks_worth_taking(shares_N, new_N, SETTINGS) == plain
    assert plain or new_mean == 0.1


def test_few_make_most_of_the_calls_where_people_are_unlike() -> None:
    """The busiest tenth of a thousand people: of an exponential distribution they make a third of the calls."""
    tops = []
    for unlike in (0.3, 1.0):
        people = _People(World(people=1000, unlike=unlike), 1)
        calls = Counter(call.user for call in people.call(range(1000), since_s=0, lasts_s=LASTS_S).calls)
        tops.append(sum(count for _, count in calls.most_common(100)) / calls.total())
    assert tops[0] > 0.5
    assert 0.3 < tops[1] < 0.4


# With a real journal, and what really looks at it.


def enter(journal: Journal, adapter: str, found: Calls, *, after: float = -1.0, until: float) -> None:
    """Put calls of a time into the journal."""
    rows = [
        msgspec.structs.asdict(session(call.session, started_at=call.started_at, user_hash=call.user))
        | {"adapter": adapter, "ended_at": call.started_at, "end_reason": "hang_up"}
        for call in found.calls
        if after < call.started_at <= until
    ]
    if rows:
        with journal.engine.begin() as connection:
            connection.execute(insert(schema.sessions), rows)


def test_it_decides_when_watch_does(sqlite_journal: Journal) -> None:
    people, again = _People(CROWD, 3), _People(CROWD, 3)
    everybody = range(CROWD.people)
    before, _ = [each.call(everybody, since_s=0, lasts_s=LASTS_S) for each in (people, again)]
    control = [each.share for each in counted_people(before.calls, before.counted, LASTS_S, SETTINGS)]
    ended = _watched(people, Group(shares=tuple(control)), Scenario(world=CROWD, times=3.0), SETTINGS)
    assert ended.decision is Decision.HARM
    after = again.call(everybody, since_s=LASTS_S, lasts_s=LASTS_S, times=3.0, adapter="one")

    canary_of(sqlite_journal).promote("one", reason="an operator said so")
    with sqlite_journal.engine.begin() as connection:
        connection.execute(update(schema.adapters).values(changed_at=LASTS_S))
    enter(sqlite_journal, "", before, until=LASTS_S)

    def count(_journal: Journal, name: str, _confidence: float) -> CallCount:
        return (before.counted | after.counted)[name]

    decided_at = LASTS_S + ended.days * 86400
    for since, now, taken in ((LASTS_S, decided_at - 1, False), (decided_at - 1, decided_at + 1e-3, True)):
        enter(sqlite_journal, "one", after, after=since, until=now)
        looked = watch(sqlite_journal, now=now, count=count)
        assert looked is not None
        assert looked.rolled_back is taken
        assert looked.reading.control_users == len(control)
        assert not taken or looked.reading.canary_users == ended.users


def test_it_decides_as_review_does(sqlite_journal: Journal) -> None:
    world = World(people=120)
    people = _People(world, 5)
    with_ = people.call(range(60), since_s=0, lasts_s=LASTS_S, adapter="one", times=4.0)
    without = people.call(range(60, 120), since_s=0, lasts_s=LASTS_S)
    ended, control = _canary(_people(without, SETTINGS), _people(with_, SETTINGS), SETTINGS)
    assert ended.decision is Decision.HARM
    registry = canary_of(sqlite_journal)
    with sqlite_journal.engine.begin() as connection:
        connection.execute(update(schema.adapters).values(changed_at=0.0))
    decided_at = ended.days * 86400
    states = []
    for since, now in ((-1.0, decided_at - 1), (decided_at - 1, decided_at + 1e-3)):
        for adapter, found in (("one", with_), ("", without)):
            enter(sqlite_journal, adapter, found, after=since, until=now)
        review(sqlite_journal, now=now, count=lambda _, name, __: (with_.counted | without.counted)[name])
        states.append(registry.get("one").state)
    assert states == [AdapterState.CANARY, AdapterState.ROLLED_BACK]
    observed = msgspec.json.decode(registry.verdicts("one")[-1].figures)["observed"]
    assert (len(observed["canary"]["shares"]), len(observed["control"]["shares"])) == (
        ended.users,
        len(control.shares),
    )


def test_the_suite_prints_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["evaluate", "--suite", "rollbacks", "--experiments", "3", "--only", "canary_same_100", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    harm = rows["canary_same_100_harm"]
    assert code == (0 if harm["met"] else 1)
    assert (harm["goal"], harm["unit"], 0 <= harm["value"] <= 1) == (0.05, "share", True)
    assert rows["canary_same_100_promoted"]["goal"] is None, "to promote what is no worse is no error"
