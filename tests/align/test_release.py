"""An adapter's way to people on both databases, with the release killed between any two of its steps."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import event, insert

from online_align.bases import Base
from online_align.canary import CanarySettings
from online_align.observations import CallCount, count_call, observe
from online_align.release import ReleaseSettings, review, roll_back, submit, verdict_of
from online_align.verdicts import Check, Outcome, Verdict, conclude
from server.journal import Journal, open_journal, schema
from server.journal.adapter_records import BY_SERVER
from server.journal.registry import (
    AdapterRegistry,
    AdapterRow,
    AdapterState,
    RegistryError,
    VerdictRow,
    VerdictStage,
)
from tests.journal.calls import record, session
from tests.journal.conftest import journal, postgres, postgres_journal, sqlite_journal

__all__ = ["journal", "postgres", "postgres_journal", "sqlite_journal"]

GOOD = conclude([Check(name="answered", outcome=Outcome.PASSED, reason="It answers.", value=0.9, base=0.9)])
BAD = conclude([Check(name="answered", outcome=Outcome.FAILED, reason="It is mute.", value=0.0, base=0.9)])
MINI = Base(checkpoint="mini")
ALONE = ReleaseSettings(evidence="gate")


def row(name: str, *, at: float = 1.0) -> AdapterRow:
    return AdapterRow(id=name, checkpoint="mini", path=f"adapters/{name}", sha256="ab" * 32, made_at=at)


def says(verdict: Verdict) -> Callable[..., Verdict]:
    return lambda *_: verdict


def states(journal: Journal) -> dict[str, str]:
    return {each.id: each.state.value for each in AdapterRegistry(journal.engine).list()}


def test_from_staged_to_canary_or_nowhere(journal: Journal) -> None:
    registry = AdapterRegistry(journal.engine)
    registry.add(row("good"))
    registry.add(row("bad"))
    assert submit(journal, "good", judge=says(GOOD)).passed
    assert not submit(journal, "bad", judge=says(BAD)).passed
    assert states(journal) == {"good": "canary", "bad": "rejected"}
    kept = verdict_of(registry.verdicts("bad")[0])
    assert kept == BAD
    assert kept.reason == "It is mute."
    with pytest.raises(RegistryError, match="'none'"):
        submit(journal, "none", judge=says(GOOD))


def test_a_second_one_waits_with_its_verdict(journal: Journal) -> None:
    registry = AdapterRegistry(journal.engine)
    for name in ("one", "two"):
        registry.add(row(name))
        submit(journal, name, judge=says(GOOD))
    assert states(journal) == {"one": "canary", "two": "staged"}
    roll_back(journal, "one", reason="an operator said so")
    submit(journal, "two", judge=says(BAD))  # not judged again
    assert states(journal) == {"one": "rolled_back", "two": "canary"}
    assert len(registry.verdicts("two")) == 1


def test_two_that_judge_at_once_give_one_verdict(journal: Journal) -> None:
    """A learner and an operator: who ends first counts, and the other one goes on from there."""
    registry = AdapterRegistry(journal.engine)
    registry.add(row("one"))

    def slow(*_: object) -> Verdict:
        assert submit(journal, "one", judge=says(GOOD)).passed
        return BAD

    assert submit(journal, "one", judge=slow) == GOOD
    assert states(journal) == {"one": "canary"}
    assert len(registry.verdicts("one")) == 1


def test_where_nobody_can_be_asked_the_gate_is_enough_and_says_so(journal: Journal) -> None:
    registry = AdapterRegistry(journal.engine)
    for name in ("one", "two"):
        registry.add(row(name))
        submit(journal, name, ALONE, judge=says(GOOD))
    assert states(journal) == {"one": "retired", "two": "live"}
    assert "Nobody is asked here" in registry.verdicts("two")[-1].reason
    registry.add(row("bad"))
    submit(journal, "bad", ALONE, judge=says(BAD))
    assert states(journal) == {"one": "retired", "two": "live", "bad": "rejected"}


def test_who_cannot_judge_moves_nothing(journal: Journal) -> None:
    AdapterRegistry(journal.engine).add(row("one"))

    def broken(*_: object) -> Verdict:
        raise MemoryError

    with pytest.raises(MemoryError):
        submit(journal, "one", judge=broken)
    assert states(journal) == {"one": "staged"}
    assert submit(journal, "one", judge=says(GOOD)).passed


def test_a_deleted_call_stops_it_at_every_stage(journal: Journal) -> None:
    registry = AdapterRegistry(journal.engine)
    record(journal, ["a", "b"], 3)
    registry.add(row("one"), sessions=["a"])
    registry.add(row("two"), sessions=["b"])
    submit(journal, "one", judge=says(GOOD))
    submit(journal, "two", judge=says(GOOD))
    for call in ("a", "b"):
        journal.removal.session(call)
    taken = review(journal)
    assert taken is not None
    assert taken.state is AdapterState.ROLLED_BACK
    submit(journal, "two", judge=says(GOOD))
    assert states(journal) == {"one": "rolled_back", "two": "rejected"}
    assert "deleted" in registry.verdicts("two")[-1].reason


def test_a_canary_that_a_server_cannot_read_is_taken_back(journal: Journal) -> None:
    registry = AdapterRegistry(journal.engine)
    registry.add(row("one"))
    submit(journal, "one", judge=says(GOOD))
    reason = "a server refuses its files: NaN"
    registry.add_verdict(
        VerdictRow(adapter_id="one", stage=VerdictStage.CANARY, passed=False, reason=reason, figures=BY_SERVER)
    )
    for evidence in ("users", "gate"):
        looked = review(journal, ReleaseSettings(evidence=evidence))
        assert looked is None or looked.state is AdapterState.ROLLED_BACK
    assert states(journal) == {"one": "rolled_back"}
    assert registry.verdicts("one")[-1].reason == reason


def test_paths_that_lead_out_are_refused_and_not_opened(journal: Journal, tmp_path: Path) -> None:
    """A row that was written past the registry, as somebody with the database could."""
    registry = AdapterRegistry(journal.engine)
    registry.add(row("one"))
    with journal.engine.begin() as connection:
        connection.execute(schema.adapters.update().values(path="../../etc"))
    verdict = submit(journal, "one", ReleaseSettings(data_dir=tmp_path), judge=says(GOOD))
    assert not verdict.passed
    assert "a folder in the data folder" in verdict.reason
    assert states(journal) == {"one": "rejected"}


# The canary.


def calls(journal: Journal, adapter: str, users: dict[str, int], *, at: float = 2000.0) -> None:
    """One ended call for each user, named `ADAPTER-USER-COMPLAINTS`."""
    rows = []
    for user, complaints in users.items():
        name = f"{adapter or 'base'}-{user or 'nobody'}-{complaints}"
        about = msgspec.structs.asdict(session(name, started_at=at, user_hash=user)) | {"adapter": adapter}
        rows.append(about | {"ended_at": at + 60, "end_reason": "hang_up"})
    with journal.engine.begin() as connection:
        connection.execute(insert(schema.sessions), rows)


def five_turns(_journal: Journal, name: str, _confidence: float) -> CallCount:
    return CallCount(turns=5, complaints=int(name.rsplit("-", 1)[1]))


def canary_of(journal: Journal, name: str = "one") -> AdapterRegistry:
    registry = AdapterRegistry(journal.engine, clock=lambda: 1000.0)
    registry.add(row(name))
    registry.decide(GOOD.row(name, VerdictStage.GATE), "canary")
    return registry


def users(prefix: str, complaints: list[int]) -> dict[str, int]:
    return {f"{prefix}{number}": each for number, each in enumerate(complaints)}


def test_harm_is_taken_back_by_itself(journal: Journal) -> None:
    registry = canary_of(journal)
    calls(journal, "", users("c", [0] * 40))
    calls(journal, "one", users("t", [3] * 8))
    assert review(journal, now=3000.0, count=five_turns) == registry.get("one")
    assert states(journal) == {"one": "canary"}, "eight people are too few"
    calls(journal, "one", users("u", [3] * 12))
    taken = review(journal, now=3000.0, count=five_turns)
    assert taken is not None
    assert taken.state is AdapterState.ROLLED_BACK
    said = registry.verdicts("one")[-1]
    assert (said.stage, said.passed) == ("canary", False)
    assert "people complain more" in said.reason
    assert review(journal) is None


def test_what_is_not_worse_goes_live(journal: Journal) -> None:
    registry = canary_of(journal)
    calls(journal, "", users("c", [1, 2, 3] * 30))
    calls(journal, "one", users("t", [0, 0, 1] * 20))
    live = review(journal, now=3000.0, count=five_turns)
    assert live is not None
    assert live.state is AdapterState.LIVE
    assert registry.verdicts("one")[-1].passed


def test_without_a_decision_there_is_no_promotion(journal: Journal) -> None:
    canary_of(journal)
    calls(journal, "one", users("t", [0] * 5))
    settings = ReleaseSettings(canary=CanarySettings(longest_s=5000.0))
    assert review(journal, settings, now=3000.0, count=five_turns) is not None
    assert states(journal) == {"one": "canary"}
    ended = review(journal, settings, now=7000.0, count=five_turns)
    assert ended is not None
    assert ended.state is AdapterState.REJECTED
    assert "so no promotion" in AdapterRegistry(journal.engine).verdicts("one")[-1].reason


def test_one_person_with_many_calls_is_one_person(journal: Journal) -> None:
    canary_of(journal)
    calls(journal, "", users("c", [0] * 40))
    for hour in range(30):
        calls(journal, "one", {f"one-angry-{hour}": 5}, at=2000.0 + hour)
    with journal.engine.begin() as connection:
        table = schema.sessions
        connection.execute(table.update().where(table.c.adapter == "one").values(user_hash="angry"))
    found = observe(
        journal, canary="one", control="", base=MINI, since=1000.0, now=9e9, settings=CanarySettings(), count=five_turns
    )
    assert len(found.canary.shares) == 1
    review(journal, ReleaseSettings(canary=CanarySettings(longest_s=1e12)), now=3000.0, count=five_turns)
    assert states(journal) == {"one": "canary"}


def test_who_counts(journal: Journal) -> None:
    """Anonymous callers and people who heard both give no number; who left after one turn counts after a day."""
    canary_of(journal)
    calls(journal, "one", {"": 5, "both": 1, "left": 1})
    calls(journal, "", {"both": 0, "here": 2})

    def count(_journal: Journal, name: str, _confidence: float) -> CallCount:
        return CallCount(turns=1 if "left" in name else 5, complaints=int(name.rsplit("-", 1)[1]))

    settings = CanarySettings(settle_s=100.0)
    soon = observe(
        journal, canary="one", control="", base=MINI, since=1000.0, now=2050.0, settings=settings, count=count
    )
    assert (soon.canary.shares, soon.control.shares, soon.mixed) == ((), (0.4,), 1)
    assert (soon.canary_turns, soon.canary_complaints) == (11, 7)
    later = observe(
        journal, canary="one", control="", base=MINI, since=1000.0, now=2200.0, settings=settings, count=count
    )
    assert later.canary.shares == (1.0,)


@pytest.mark.parametrize(("complaints", "state"), [(0, "live"), (4, "rolled_back")])
def test_turns_of_a_machine_without_users(journal: Journal, complaints: int, state: str) -> None:
    canary_of(journal)
    settings = ReleaseSettings(evidence="turns", turns=5)
    review(journal, settings, now=3000.0, count=five_turns)
    assert states(journal) == {"one": "canary"}
    calls(journal, "one", {"": complaints})
    review(journal, settings, now=3000.0, count=five_turns)
    assert states(journal) == {"one": state}
    assert "weak evidence" in AdapterRegistry(journal.engine).verdicts("one")[-1].reason


def test_complaints_of_a_call_by_its_signals(journal: Journal) -> None:
    record(journal, ["a"], 3)
    signals = (("response", 1), ("no_response", 2), ("pause_takeover", 3), ("response", 4))
    with journal.engine.begin() as connection:
        for kind, number in signals:
            about = {"session_id": "a", "number": number, "revision": 0, "kind": kind, "t0": 9.0 * number}
            more = {"t1": 9.0 * number + 1, "confidence": 0.9, "state": "final", "value": "", "detector": "test"}
            connection.execute(insert(schema.signals), [about | more])
    found = count_call(journal, "a", 0.5)
    assert found.turns == 4
    assert found.complaints == 1


# Killed between any two steps.

STATEMENTS = 60


@pytest.fixture(params=["sqlite", "postgres"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Journal]]:
    """Opens the same journal again, as another process does."""
    url = None
    if request.param == "postgres":
        request.getfixturevalue("postgres_journal")
        url = request.getfixturevalue("postgres")
    opened: list[Journal] = []

    def again() -> Journal:
        opened.append(open_journal(tmp_path / "again", url))
        return opened[-1]

    yield again
    for each in opened:
        each.engine.dispose()


def killed(journal: Callable[[], Journal], statement: int, work: Callable[[Journal], object]) -> bool:
    """Do the work in a process of its own that dies before its n-th statement. Returns whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            own = journal()
            left = [statement]

            def count(*_: object) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            event.listen(own.engine, "before_cursor_execute", count)
            event.listen(own.engine, "commit", count)
            work(own)
            own.engine.dispose()
        except BaseException as problem:  # noqa: BLE001 - a forked test must not go on as a second pytest
            print(problem, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("verdict", [GOOD, BAD], ids=["good", "bad"])
def test_killed_at_every_statement(reopen: Callable[[], Journal], verdict: Verdict) -> None:
    """Nothing bad ever goes live, nothing is lost, and asking again finishes the work."""
    journal = reopen()
    registry = AdapterRegistry(journal.engine)
    registry.add(row("before"))
    submit(journal, "before", ALONE, judge=says(GOOD))
    kills, was_killed = 0, True
    for statement in range(STATEMENTS):
        name = f"n{statement}"
        journal.engine.dispose()

        def work(own: Journal, name: str = name) -> None:
            AdapterRegistry(own.engine).add(row(name), sessions=["a", "b"])
            submit(own, name, ALONE, judge=says(verdict))

        was_killed = killed(reopen, statement, work)
        after = states(journal)
        assert after["before"] in ("live", "retired")
        assert [*after.values()].count("live") == 1, "somebody always speaks, and only one"
        if verdict is BAD:
            assert after["before"] == "live"
            assert after.get(name) in (None, "staged", "rejected")
        for said in registry.verdicts(name) if name in after else ():
            assert verdict_of(said).passed == verdict.passed, "whole or not there"
        work(journal)
        finished = registry.get(name)
        assert finished.state == ("live" if verdict is GOOD else "rejected")
        assert registry.sessions_of(name) == ("a", "b")
        kills += was_killed
        if not was_killed:
            break
    assert kills >= 10
    assert not was_killed, "more statements than were tried"
