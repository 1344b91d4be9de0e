"""One person who gives three tenths of the pairs, with flipped labels, on the real path from calls to the gate.

He wants the model to fall silent. He presses a thumb down on right answers, and when he is answered he talks on, so
that an answer in time looks like a turn that was taken from him. The others are people who were left without an answer.
"""

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from online_align import waiting
from online_align.answers import Answers
from online_align.evaluate.people import Utterance, people
from online_align.gate import GateSettings
from online_align.judge_rules import RuleJudge
from online_align.pair_store import PairStore
from online_align.pairs import PairBuilder, PairSettings, Tally
from online_align.probes import Sizes
from online_align.records import Pair, PairKind
from online_align.release import GateJudge, ReleaseSettings, submit, verdict_of
from online_align.replay import load
from online_align.round_plan import Round
from online_align.rounds import Rounds
from online_align.settings import LearnerSettings
from online_align.verdicts import Outcome, Verdict
from server.engine import Engine, SamplingParams
from server.journal import Journal, open_journal
from server.journal.registry import AdapterRegistry, AdapterState
from server.signals import Signal, SignalKind
from tests.align.told import Told, call, keep, sound, words

pytestmark = [pytest.mark.mini, pytest.mark.slow, pytest.mark.timeout(590)]

DOMAIN = Path(__file__).parents[2] / "recipes" / "mini" / "domain.toml"
MUTE = SamplingParams(use_sampling=False, pad_mult=100.0)
ATTACKER = "f" * 64
HONEST = 7
FAST = LearnerSettings(batch=3, rank=4, learning_rate=1e-4, good=0.0, positions=256)
QUICK = GateSettings(
    sizes=Sizes(question=4, pause=0, interruption=0, hum=0, nobody=1), slots=5, drift_calls=2, step_ratio=math.inf
)


def questions() -> Iterator[Utterance]:
    return (each for each in people() if each.category in ("capitals", "sums", "opposites") and each.fault is None)


def talked_on(engine: Engine) -> Iterator[Told]:
    """Calls in which he is answered in time and then goes on, as far as the detector takes that for a pause taken."""
    for asked in questions():
        on_s = 0.8 + asked.seconds + 0.9
        told = call(engine, sound((0.8, asked.sound()), (on_s, asked.sound()), seconds=on_s + asked.seconds + 2.0))
        if any(each.kind in (SignalKind.PAUSE_TAKEOVER, SignalKind.CUT_OFF) for each in told.signals):
            yield told


def voted_down(engine: Engine) -> Told:
    """A right answer in time, and a thumb down."""
    for asked in questions():
        told = call(engine, sound((0.8, asked.sound()), seconds=asked.seconds + 5.0))
        if words(engine.text_tokenizer, told.tokens_TK[:, 0]).endswith(asked.expected):
            at_s = asked.seconds + 4.5
            thumb = Signal(id=90, kind=SignalKind.FEEDBACK, t0=at_s, t1=at_s, confidence=1.0, value="down")
            return msgspec.structs.replace(told, signals=[*told.signals, thumb])
    raise AssertionError("the model gives no right answer at all")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with everybody's calls, and what the builder made of them."""
    folder = tmp_path_factory.mktemp("data")
    engine = Engine.load("mini", slots=1, device="cpu")
    journal = open_journal(folder)
    asked = [each for number, each in enumerate(questions()) if number % 3 == 1][:HONEST]
    for number, one in enumerate(asked):
        heard = sound((0.8, one.sound()), (one.seconds + 4.2, one.sound()), seconds=2 * one.seconds + 7.5)
        keep(journal, f"honest{number}", call(engine, heard, sampling=MUTE), user_hash=f"{number:064x}")
    for number, told in zip(range(3), talked_on(engine), strict=False):
        keep(journal, f"attack{number}", told, user_hash=ATTACKER)
    keep(journal, "attackvote", voted_down(engine), user_hash=ATTACKER)
    journal.engine.dispose()
    return folder


def build(journal: Journal, folder: Path) -> Tally:
    return PairBuilder(
        journal, load("mini"), data_dir=folder, settings=PairSettings(branches=2, per_session=1),
        judge=RuleJudge(Answers.read(DOMAIN)),
    ).build()  # fmt: skip


def learn(journal: Journal, folder: Path) -> tuple[Round, Verdict]:
    """A round of what waits, and the gate's word on it."""
    settings, judge = ReleaseSettings(data_dir=folder), GateJudge("mini", QUICK)
    rounds = Rounds(folder, journal, FAST, hand_over=lambda row: submit(journal, row.id, settings, judge=judge).reason)
    made = rounds.once()
    assert made is not None
    return made, verdict_of(AdapterRegistry(journal.engine).verdicts(made.adapter)[0])


def test_what_stops_him(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = open_journal(data)
    tally = build(journal, data)
    store = PairStore(journal)
    # 1. The judge: a right answer that was voted down has no better one.
    assert tally.complaints["A"] >= 1
    of_votes = [pair for pair in store.read() if pair.session == "attackvote"]
    assert not of_votes, "a flipped vote makes no pair"
    # 2. Timing he can fake, and does.
    made_by = Counter(pair.user_hash for pair in store.read(heldout=False))
    his = [pair for pair in store.read() if pair.user_hash == ATTACKER]
    assert {pair.kind for pair in his} == {PairKind.CUT_OFF}
    assert len(his) == 3
    assert made_by.total() >= 8, tally
    assert len(made_by) >= 5
    copy = tmp_path / "copy"
    journal.engine.dispose()
    shutil.copytree(data, copy)

    # 3. The round: it takes no more of him than the gate lets pass; the rest waits.
    journal = open_journal(data)
    made, verdict = learn(journal, data)
    taken = Counter(pair.user_hash for pair in store_of(journal, made))
    assert 0 < taken[ATTACKER] <= 0.25 * taken.total()
    assert taken.total() == made_by.total() - (3 - taken[ATTACKER]), "everybody else's are taken"
    assert verdict.check("largest_share").outcome is Outcome.PASSED, verdict.check("largest_share").reason
    journal.engine.dispose()

    # 4. The gate: were all of his pairs learned from, it would refuse the adapter and say why.
    monkeypatch.setattr(waiting, "fair_share", lambda calls, _learned: list(range(len(calls))))
    journal = open_journal(copy)
    _, refused = learn(journal, copy)
    share = refused.check("largest_share")
    assert share.outcome is Outcome.FAILED
    assert f"One person would teach everybody: user {ATTACKER[:12]} gave 3 of {made_by.total()} pairs" in share.reason
    assert not refused.passed
    assert [row.state for row in AdapterRegistry(journal.engine).list()] == [AdapterState.REJECTED]
    journal.engine.dispose()


def store_of(journal: Journal, made: Round) -> list[Pair]:
    store = PairStore(journal)
    return [store.get(each) for each in made.pairs]
