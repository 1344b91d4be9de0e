"""After another base model was put in: what was learned on the old one holds nobody up, and comes back with it."""

import json
import time
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert

from online_align.canary import CanarySettings, Decision
from online_align.learn_command import parser
from online_align.learning import Learner, review_of
from online_align.pair_store import PairStore
from online_align.progress import LearnerMetrics, Progress
from online_align.release import Evidence, ReleaseSettings, go_on, review, submit
from online_align.round_plan import Stage
from online_align.rounds import Rounds
from online_align.watch import watch
from online_align.workers import Workers
from server.journal import Journal, schema
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState, VerdictStage
from tests.align.test_release import GOOD, five_turns, says, states, users
from tests.align.test_rounds import CALLS, FAST, some
from tests.journal.calls import record, session
from tests.journal.conftest import journal, postgres, postgres_journal, sqlite_journal
from tests.tiny_checkpoint import write_tiny_checkpoint

__all__ = ["journal", "postgres", "postgres_journal", "sqlite_journal"]

OLD, NEW = {"checkpoint": "old", "base_sha256": "0" * 64}, {"checkpoint": "new", "base_sha256": "1" * 64}
ON_NEW = ReleaseSettings(checkpoint="new")


def row(name: str, base: dict[str, str], *, at: float = 1.0) -> AdapterRow:
    manifest = json.dumps({"base_sha256": base["base_sha256"]})
    checkpoint, path = base["checkpoint"], f"adapters/{name}"
    return AdapterRow(id=name, checkpoint=checkpoint, path=path, sha256="ab" * 32, made_at=at, manifest=manifest)


def called(journal: Journal, base: dict[str, str], adapter: str, complaints: dict[str, int], *, at: float) -> None:
    """One ended call of five turns for each user, with so many complaints."""
    rows = []
    for user, count in complaints.items():
        name = f"{base['checkpoint']}-{adapter or 'base'}-{user}-{count}"
        about = msgspec.structs.asdict(session(name, started_at=at, user_hash=user))
        rows.append(about | base | {"adapter": adapter, "ended_at": at + 60, "end_reason": "hang_up"})
    with journal.engine.begin() as connection:
        connection.execute(insert(schema.sessions), rows)


def entered(journal: Journal, name: str, base: dict[str, str], state: str, *, changed_at: float) -> AdapterRegistry:
    """An adapter that passed the gate, and the canary where it is live, without anybody's word of this test's."""
    registry = AdapterRegistry(journal.engine, clock=lambda: changed_at)
    registry.add(row(name, base, at=changed_at))
    registry.add_verdict(GOOD.row(name, VerdictStage.GATE))
    for stage in {"staged": (), "canary": ("canary",), "live": ("canary", "live")}[state]:
        registry.decide(GOOD.row(name, VerdictStage.CANARY if stage == "live" else VerdictStage.GATE), stage)
    return registry


def test_a_canary_of_the_old_base_ends_with_a_verdict_and_rounds_go_on(sqlite_journal: Journal, tmp_path: Path) -> None:
    """The learner's own look, and a real round on the new base, which has its turn at once."""
    journal, tiny = sqlite_journal, write_tiny_checkpoint(tmp_path / "new")
    at = time.time()
    registry = entered(journal, "old-canary", OLD, "canary", changed_at=at - 900)
    record(journal, CALLS, 3)
    PairStore(journal).add(some(range(4)))
    called(journal, OLD, "old-canary", users("t", [1] * 3), at=at - 600)
    asked = parser("run").parse_args(["--data-dir", str(tmp_path), "--checkpoint", str(tiny)])
    told = Progress(LearnerMetrics(), bar=False)
    rounds = Rounds(
        tmp_path, journal, FAST, checkpoint=str(tiny), told=told,
        hand_over=lambda row: submit(journal, row.id, ON_NEW, judge=says(GOOD)).reason,
    )  # fmt: skip
    learner = Learner(rounds, told, Workers(), lambda: 0, review_of(asked, journal))
    assert not learner.is_due(4, by_clock=False), "as long as nobody has called since"
    called(journal, NEW, "", {"first": 0}, at=at - 60)
    assert learner.is_due(4, by_clock=False), "nobody can be asked about it any more"
    ended = registry.get("old-canary")
    said = registry.verdicts("old-canary")[-1]
    assert (ended.state, said.stage, said.passed) == (AdapterState.REJECTED, VerdictStage.CANARY, False)
    assert "was learned on old, and calls have new now" in said.reason
    assert msgspec.json.decode(said.figures)["observed"]["canary_turns"] == 0, "what was heard is kept with it"
    made = learner.round()
    assert (made.stage, made.parent) == (Stage.DONE, "")
    assert states(journal) == {"old-canary": "rejected", "round-0001": "canary"}


@pytest.mark.parametrize(
    ("told", "calls"),
    [
        ("old", [NEW]),  # the learner that tests it is there
        ("new", []),  # nobody has called since
        ("new", [NEW, OLD]),  # the learner was started with another by mistake
        ("renamed", [OLD]),  # the same weights in another folder
        ("", [NEW]),  # nobody said what is served
    ],
)
def test_it_goes_on_as_long_as_its_base_may_be_heard(journal: Journal, told: str, calls: list[dict[str, str]]) -> None:
    entered(journal, "one", OLD, "canary", changed_at=1000.0)
    for number, base in enumerate(calls):
        renamed = base | ({"checkpoint": told} if told == "renamed" else {})
        called(journal, renamed, "", {f"u{number}": 0}, at=2000.0 + number)
    review(journal, ReleaseSettings(checkpoint=told), now=3000.0, count=five_turns)
    assert states(journal) == {"one": "canary"}


def test_staged_and_live_wait_for_their_base(journal: Journal) -> None:
    registry = entered(journal, "live", OLD, "live", changed_at=100.0)
    entered(journal, "waits", OLD, "staged", changed_at=200.0)
    entered(journal, "next", NEW, "staged", changed_at=300.0)
    called(journal, NEW, "", {"u": 0}, at=2000.0)
    canary = go_on(journal, ON_NEW)
    assert canary is not None
    assert canary.id == "next", "the older one has no turn"
    assert watch(journal, ON_NEW, now=3000.0, count=five_turns) is not None
    assert states(journal) == {"live": "live", "waits": "staged", "next": "canary"}
    registry.roll_back("next", reason="test")
    called(journal, OLD, "live", {"u": 0}, at=4000.0)
    canary = go_on(journal, ReleaseSettings(checkpoint="old"))
    assert canary is not None
    assert canary.id == "waits", "its base is back"
    assert states(journal)["live"] == "live"


def test_where_the_gate_is_enough_the_old_bases_adapter_does_not_go_live(journal: Journal) -> None:
    entered(journal, "one", OLD, "canary", changed_at=100.0)
    entered(journal, "two", OLD, "staged", changed_at=200.0)
    called(journal, NEW, "", {"u": 0}, at=2000.0)
    settings = ReleaseSettings(checkpoint="new", evidence="gate")
    review(journal, settings, now=3000.0)
    go_on(journal, settings)
    assert states(journal) == {"one": "rejected", "two": "staged"}


@pytest.mark.parametrize("evidence", ["users", "gate"])
def test_what_passed_on_the_old_base_waits_even_before_anybody_has_called_since(
    journal: Journal, evidence: Evidence
) -> None:
    """The learner died after the verdict and begins again on the new base: the newest call is still an old one."""
    entered(journal, "one", OLD, "staged", changed_at=100.0)
    called(journal, OLD, "", {"u": 0}, at=2000.0)
    swapped = ReleaseSettings(checkpoint="new", evidence=evidence)
    assert submit(journal, "one", swapped, judge=says(GOOD)).passed
    go_on(journal, swapped)
    assert states(journal) == {"one": "staged"}
    called(journal, OLD | {"checkpoint": "new"}, "", {"u": 0}, at=3000.0)  # the same weights, by another name
    go_on(journal, swapped)
    assert states(journal) == {"one": {"users": "canary", "gate": "live"}[evidence]}


def test_a_canary_does_not_go_live_on_another_base_before_anybody_has_called_since(journal: Journal) -> None:
    entered(journal, "one", OLD, "canary", changed_at=100.0)
    called(journal, OLD, "", {"u": 0}, at=2000.0)
    swapped = ReleaseSettings(checkpoint="new", evidence="gate")
    submit(journal, "one", swapped)
    review(journal, swapped, now=3000.0)
    assert states(journal) == {"one": "canary"}
    called(journal, NEW, "", {"u": 0}, at=4000.0)
    review(journal, swapped, now=5000.0)
    assert states(journal) == {"one": "rejected"}


def test_people_of_the_old_base_are_nobodys_control(journal: Journal) -> None:
    """The live one is another base's, so whoever does not hear the canary hears the base model; the new one."""
    entered(journal, "old", OLD, "live", changed_at=100.0)
    registry = entered(journal, "new", NEW, "canary", changed_at=1000.0)
    called(journal, OLD, "", users("late", [5] * 40), at=1500.0)  # calls that the old engine still held
    called(journal, NEW, "", users("c", [0] * 40), at=2000.0)
    called(journal, NEW, "new", users("t", [2] * 30), at=2000.0)
    taken = review(journal, ON_NEW, now=3000.0, count=five_turns)
    assert taken is not None
    assert taken.state is AdapterState.ROLLED_BACK
    assert "0.0% of 40 people's without" in registry.verdicts("new")[-1].reason


def test_what_is_live_is_not_compared_with_the_base_model_before_the_swap(journal: Journal) -> None:
    """Nobody complained about the old base, everybody about the new one, and with the adapter fewer."""
    entered(journal, "one", NEW, "live", changed_at=3000.0)
    called(journal, OLD, "", users("b", [0] * 40), at=1000.0)
    called(journal, NEW, "", users("c", [4] * 40), at=2000.0)
    called(journal, NEW, "one", users("t", [3] * 40), at=4000.0)
    settings = ReleaseSettings(checkpoint="new", canary=CanarySettings(longest_s=1e5))
    looked = watch(journal, settings, now=5000.0, count=five_turns)
    assert looked is not None
    assert (looked.rolled_back, looked.reading.control, looked.reading.control_users) == (False, 0.8, 40)
    assert looked.reading.decision is not Decision.HARM
