"""A learner killed while the gate judges, while its verdict is written, and while an adapter is moved or watched.

The stages of a round before that are in `test_rounds`, every single statement of the release in `test_release`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from online_align.pair_store import PairStore
from online_align.release import ReleaseSettings, go_on, submit
from online_align.round_plan import Stage
from online_align.rounds import Rounds
from online_align.verdicts import Verdict
from online_align.watch import watch
from server.journal import Journal
from server.journal.registry import AdapterRegistry, AdapterRow, AdapterState
from tests.align.test_release import BAD, GOOD, calls, five_turns, killed, reopen, says, users
from tests.align.test_rounds import FAST, Dead, journal, some, tiny
from tests.align.test_watch import LIVE_AT, made_live
from tests.journal.conftest import journal as both
from tests.journal.conftest import postgres, postgres_journal, sqlite_journal

__all__ = ["both", "journal", "postgres", "postgres_journal", "reopen", "sqlite_journal", "tiny"]


def dies(*_: object, **__: object) -> Verdict:
    raise Dead


PLACES = ("the gate judges", "the verdict is written", "it moves to canary", "it is made live")


@pytest.mark.parametrize("verdict", [GOOD, BAD], ids=["good", "bad"])
@pytest.mark.parametrize("where", PLACES)
def test_dead_in_gate_or_release_it_goes_on(
    journal: Journal, tmp_path: Path, tiny: str, where: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real round up to a staged adapter, then a death; the next learner judges it once and releases it once."""
    PairStore(journal).add(some(range(6)))
    settings = ReleaseSettings(data_dir=tmp_path, evidence="gate")
    judged: list[str] = []

    def judge(_journal: Journal, row: AdapterRow, folder: Path) -> Verdict:
        assert (folder / "lora.safetensors").is_file(), "what is judged lies where the registry says"
        judged.append(row.id)
        return verdict

    def learner(by: Callable[..., Verdict]) -> Rounds:
        hand_over = lambda row: submit(journal, row.id, settings, judge=by).reason  # noqa: E731
        return Rounds(tmp_path, journal, FAST, checkpoint=tiny, hand_over=hand_over)

    with monkeypatch.context() as death:
        if where == "the verdict is written":
            death.setattr(AdapterRegistry, "add_verdict", dies)
        elif where == "it moves to canary":
            death.setattr(AdapterRegistry, "transition", dies)
        elif where == "it is made live":
            death.setattr(AdapterRegistry, "decide", dies)
        if verdict is BAD and where == "it is made live":
            learner(judge).once()  # what was refused gets no further: nothing to die of
        else:
            with pytest.raises(Dead):
                learner(dies if where == "the gate judges" else judge).once()
    registry = AdapterRegistry(journal.engine)
    assert registry.live() is None, "nothing goes live before its verdict"
    made = learner(judge).once()
    state = registry.get("round-0001").state
    assert state is (AdapterState.LIVE if verdict is GOOD else AdapterState.REJECTED)
    assert made is None or (made.number, made.stage, made.outcome) == (1, Stage.DONE, verdict.reason)
    assert len(registry.list()) == 1
    assert len(judged) == (2 if where == "the verdict is written" else 1), "what is known is not judged again"
    assert [each.stage for each in registry.verdicts("round-0001")][:1] == ["gate"]
    assert learner(judge).once() is None, "no pair is trained twice"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_any_statement_of_taking_back(reopen: Callable[[], Journal]) -> None:
    """A real kill: either it is live as before, or it is rolled back with its verdict."""
    journal = reopen()
    registry = made_live(journal, control=[1] * 40)
    calls(journal, "one", users("late", [4] * 20), at=LIVE_AT + 500)
    kills, state = 0, AdapterState.LIVE
    for statement in range(60):
        journal.engine.dispose()
        kills += killed(reopen, statement, lambda own: watch(own, now=LIVE_AT + 1000, count=five_turns))
        state, said = registry.get("one").state, registry.verdicts("one")[-1]
        assert (state is AdapterState.ROLLED_BACK) == ("people complain more" in said.reason)
        if state is AdapterState.ROLLED_BACK:
            break
    assert kills >= 5
    assert state is AdapterState.ROLLED_BACK


def test_dead_before_who_waited_takes_its_turn(both: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = AdapterRegistry(both.engine)
    for name in ("one", "two"):
        registry.add(AdapterRow(id=name, checkpoint="mini", path=f"adapters/{name}", sha256="ab" * 32))
        submit(both, name, judge=says(GOOD))
    registry.roll_back("one", reason="test")
    with monkeypatch.context() as death, pytest.raises(Dead):
        death.setattr(AdapterRegistry, "transition", dies)
        go_on(both)
    assert registry.get("two").state is AdapterState.STAGED
    canary = go_on(both)
    assert canary is not None
    assert canary.id == "two"
