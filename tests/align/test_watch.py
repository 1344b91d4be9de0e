"""What is live is watched: taken back when people complain more, left alone when they do not, by signals of calls."""

from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from online_align.canary import CanarySettings, Decision
from online_align.observations import CallCount, count_call, remembered
from online_align.release import ReleaseSettings, go_on, review, submit
from online_align.watch import watch
from server.engine import Engine, SamplingParams
from server.journal import Journal, schema
from server.journal.registry import AdapterRegistry, AdapterState, VerdictStage
from server.signals import SignalKind
from tests.align.test_release import GOOD, calls, canary_of, five_turns, row, says, states, users
from tests.align.told import Told, call, keep, sound
from tests.journal.conftest import journal, postgres, postgres_journal, sqlite_journal
from tests.signals.sounds import clip

__all__ = ["journal", "postgres", "postgres_journal", "sqlite_journal"]

LIVE_AT = 3000.0


def made_live(journal: Journal, *, control: list[int], name: str = "one") -> AdapterRegistry:
    """Live by a canary's verdict, whose control group complained so often in five turns each."""
    canary_of(journal, name)
    calls(journal, "", users("c", control))
    calls(journal, name, users("t", [0, 0, 1] * 20))
    registry = AdapterRegistry(journal.engine, clock=lambda: LIVE_AT)
    promoted = review(journal, now=LIVE_AT, count=five_turns)
    assert promoted is not None
    assert promoted.state is AdapterState.LIVE
    with journal.engine.begin() as connection:
        connection.execute(update(schema.adapters).where(schema.adapters.c.id == name).values(changed_at=LIVE_AT))
    return registry


def test_harm_after_it_went_live_is_taken_back_with_a_verdict(journal: Journal) -> None:
    registry = made_live(journal, control=[1, 1, 2] * 30)
    calls(journal, "one", users("late", [4] * 10), at=4000.0)
    looked = watch(journal, now=5000.0, count=five_turns)
    assert looked is not None
    assert (looked.rolled_back, looked.reading.decision) == (False, Decision.WAIT), "ten people are too few"
    assert looked.reading.control_users == 90, "the canary's verdict kept them"
    calls(journal, "one", users("later", [4] * 10), at=4100.0)
    taken = watch(journal, now=5000.0, count=five_turns)
    assert taken is not None
    assert taken.rolled_back
    assert states(journal) == {"one": "rolled_back"}
    said = registry.verdicts("one")[-1]
    assert (said.stage, said.passed) == (VerdictStage.CANARY, False)
    assert "80.0% of the turns of 20 people" in said.reason
    assert "with the base model: people complain more" in said.reason
    assert msgspec.json.decode(said.figures)["watched"]["reading"]["canary_users"] == 20
    assert watch(journal, now=5000.0, count=five_turns) is None, "nothing is live"


def test_its_predecessor_is_what_it_is_compared_with_and_what_comes_back(journal: Journal) -> None:
    registry = AdapterRegistry(journal.engine, clock=lambda: 500.0)
    registry.add(row("before"))
    submit(journal, "before", ReleaseSettings(evidence="gate"), judge=says(GOOD))
    canary_of(journal, "one")
    registry.promote("one", reason="an operator said so")
    with journal.engine.begin() as connection:
        connection.execute(update(schema.adapters).where(schema.adapters.c.id == "one").values(changed_at=LIVE_AT))
    calls(journal, "before", users("b", [0] * 40))
    calls(journal, "one", users("b", [3] * 30), at=4000.0)
    taken = watch(journal, now=5000.0, count=five_turns)
    assert taken is not None
    assert (taken.before, taken.rolled_back, taken.reading.control_users) == ("before", True, 40)
    assert states(journal) == {"before": "live", "one": "rolled_back"}


def test_who_is_no_worse_stays_live_and_the_test_begins_anew(journal: Journal) -> None:
    made_live(journal, control=[1, 2, 1] * 30)
    settings = ReleaseSettings(canary=CanarySettings(longest_s=1000.0))
    calls(journal, "one", users("soon", [1] * 40), at=LIVE_AT + 100)
    looked = watch(journal, settings, now=LIVE_AT + 900, count=five_turns)
    assert looked is not None
    assert (looked.rolled_back, looked.reading.canary_users, looked.since) == (False, 40, LIVE_AT)
    calls(journal, "one", users("soon", [5] * 40), at=LIVE_AT + 1200)
    turned = watch(journal, settings, now=LIVE_AT + 1900, count=five_turns)
    assert turned is not None
    assert (turned.rolled_back, turned.since) == (True, LIVE_AT + 1000), "what was good may turn bad"


def test_one_person_cannot_take_it_back(journal: Journal) -> None:
    made_live(journal, control=[1] * 40)
    for hour in range(40):
        calls(journal, "one", {f"hour-{hour}": 5}, at=4000.0 + hour)
    with journal.engine.begin() as connection:
        table = schema.sessions
        connection.execute(table.update().where(table.c.id.like("one-hour%")).values(user_hash="angry"))
    looked = watch(journal, now=5000.0, count=five_turns)
    assert looked is not None
    assert (looked.rolled_back, looked.reading.canary_users) == (False, 1)


def test_where_nobody_can_be_told_apart_calls_count(journal: Journal) -> None:
    settings = ReleaseSettings(evidence="gate")
    registry = AdapterRegistry(journal.engine, clock=lambda: LIVE_AT)
    registry.add(row("one"))
    for number in range(30):
        calls(journal, "", {f"o{number}": 0})
    submit(journal, "one", settings, judge=says(GOOD))
    with journal.engine.begin() as connection:
        connection.execute(update(schema.adapters).where(schema.adapters.c.id == "one").values(changed_at=LIVE_AT))
    for number in range(30):
        calls(journal, "one", {f"n{number}": 4}, at=4000.0)
    with journal.engine.begin() as connection:
        connection.execute(schema.sessions.update().values(user_hash=""))
    taken = watch(journal, settings, now=5000.0, count=five_turns)
    assert taken is not None
    assert (taken.rolled_back, taken.by_calls, taken.reading.control_users) == (True, True, 30)
    assert "weak evidence" in AdapterRegistry(journal.engine).verdicts("one")[-1].reason


def test_a_deleted_call_takes_back_what_is_live(journal: Journal) -> None:
    made_live(journal, control=[1] * 40)
    with journal.engine.begin() as connection:
        connection.execute(update(schema.adapters).values(withdrawn=True))
    assert watch(journal, now=5000.0, count=five_turns) is not None
    assert states(journal) == {"one": "rolled_back"}
    assert "deleted" in AdapterRegistry(journal.engine).verdicts("one")[-1].reason


def test_who_had_to_wait_for_the_canary_takes_its_turn(journal: Journal) -> None:
    registry = canary_of(journal)
    for number, name in enumerate(("two", "three"), 2):
        registry.add(row(name, at=float(number)))
        submit(journal, name, judge=says(GOOD))
    registry.add(row("unjudged", at=0.5))
    assert states(journal) == {"one": "canary", "two": "staged", "three": "staged", "unjudged": "staged"}
    canary = go_on(journal)
    assert canary is not None
    assert canary.id == "one"
    registry.roll_back("one", reason="test")
    canary = go_on(journal)
    assert canary is not None
    assert canary.id == "two"
    assert states(journal)["three"] == states(journal)["unjudged"] == "staged"


def test_a_call_is_counted_once(journal: Journal) -> None:
    asked: list[str] = []

    def count(_journal: Journal, session: str, _confidence: float) -> CallCount:
        asked.append(session)
        return CallCount(turns=0, complaints=0)

    twice = remembered(count)
    assert [twice(journal, name, 0.5).turns for name in ("a", "a", "b")] == [0, 0, 0]
    assert asked == ["a", "b"]


# With calls that were really made, and what the detector really heard in them.

MUTE = SamplingParams(use_sampling=False, pad_mult=100.0)


@pytest.fixture(scope="module")
def really() -> dict[str, Told]:
    """Nobody answers and the caller asks again, in vain; and the same with a model that speaks."""
    engine = Engine.load("mini", slots=1, device="cpu")
    asked = clip("demo_2.opus")
    heard = sound((0.8, asked), (5.6, asked), seconds=11)
    return {"unanswered": call(engine, heard, sampling=MUTE), "answered": call(engine, heard)}


@pytest.mark.mini
def test_complaints_of_recorded_calls_are_counted_from_their_signals(
    sqlite_journal: Journal, really: dict[str, Told]
) -> None:
    for name, told in really.items():
        keep(sqlite_journal, name, _short(told))
    silent = [each for each in really["unanswered"].signals if each.kind is SignalKind.NO_RESPONSE]
    assert silent, "the detector heard that nobody answered"
    assert count_call(sqlite_journal, "unanswered", 0.5).complaints == 1, "who asks again complains; once"
    assert count_call(sqlite_journal, "answered", 0.5).complaints == 0


@pytest.mark.mini
def test_recorded_silences_take_a_live_adapter_back(
    sqlite_journal: Journal, really: dict[str, Told], tmp_path: Path
) -> None:
    """Real journal, real signals, the real counter: fifteen people who were answered, and fifteen who were not."""
    journal = sqlite_journal
    registry = AdapterRegistry(journal.engine, clock=lambda: LIVE_AT)
    registry.add(row("muted"))
    settings = ReleaseSettings(data_dir=tmp_path, canary=CanarySettings(settle_s=60.0))
    submit(journal, "muted", settings, judge=says(GOOD))
    registry.promote("muted", reason="test")
    with journal.engine.begin() as connection:
        connection.execute(update(schema.adapters).values(changed_at=LIVE_AT))
    for kind, adapter, at in (("answered", "", LIVE_AT - 500), ("unanswered", "muted", LIVE_AT + 500)):
        for number in range(15):
            keep(journal, f"{kind}{number}", _short(really[kind]), user_hash=f"person{number}")
        with journal.engine.begin() as connection:
            theirs = schema.sessions.c.id.like(f"{kind}%")
            values = {"adapter": adapter, "started_at": at, "ended_at": at + 9}
            connection.execute(update(schema.sessions).where(theirs).values(**values))
    taken = watch(journal, settings, now=LIVE_AT + 5000)
    assert taken is not None
    assert taken.rolled_back, taken
    assert (taken.reading.control, taken.reading.control_users, taken.reading.canary_users) == (0.0, 15, 15)
    assert states(journal) == {"muted": "rolled_back"}
    assert registry.live() is None


def _short(told: Told) -> Told:
    """Its signals, and as much sound as a row needs."""
    return msgspec.structs.replace(told, tokens_TK=told.tokens_TK[:3], logprob_T=told.logprob_T[:3])
