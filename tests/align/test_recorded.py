"""People's recorded calls in the gate: where their moments lie, what two models do there, and too few of them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from online_align.gate_checks import RecordedLimits, check_recorded
from online_align.probes import Measure, Moment, Recorded, play_moments
from online_align.recorded import find_moments
from online_align.records import PairKind
from online_align.replay import load
from online_align.verdicts import Outcome
from server.engine import Engine, SamplingParams
from server.engine.checkpoint import Checkpoint
from server.journal import Journal, open_journal
from server.signals import Signal, SignalKind
from tests.align import hacks
from tests.align.told import FRAME_S, Told, call, keep, sound
from tests.signals.sounds import clip


def measure(values: list[bool]) -> Measure:
    return Measure(value=sum(values) / len(values) if values else None, of=len(values), each=tuple(values))


def recorded(faults: list[bool], answers: list[bool], **by_kind: float) -> Recorded:
    return Recorded(faults=measure(faults), answers=measure(answers), by_kind=by_kind)


def test_few_moments_are_no_evidence_and_it_says_so() -> None:
    for check in check_recorded(recorded([], []), recorded([], []), RecordedLimits()):
        assert check.outcome is Outcome.UNKNOWN
        assert "0 moments of recorded calls that it did not learn from are too few (at least 12)" in check.reason


def test_more_faults_or_fewer_answers_are_refused_beyond_chance() -> None:
    half = [True, False] * 10
    base = recorded(half, [True] * 20, B=0.5)
    worse = recorded([True] * 20, [True] * 12 + [False] * 8, B=1.0)
    faults, answers = check_recorded(base, worse, RecordedLimits())
    assert (faults.outcome, answers.outcome) == (Outcome.FAILED, Outcome.FAILED)
    assert faults.reason.startswith("It does again more often what people complained about: recorded_faults is 1")
    assert (faults.figures["kind_B"], faults.figures["kind_B_base"]) == (1.0, 0.5)
    better = recorded([False] * 20, [True] * 18 + [False] * 2)
    assert all(each.outcome is Outcome.PASSED for each in check_recorded(base, better, RecordedLimits()))


# With the embedded model and calls that were really made.

MUTE = SamplingParams(use_sampling=False, pad_mult=100.0)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load("mini")


@pytest.fixture(scope="module")
def told() -> dict[str, Told]:
    engine = Engine.load("mini", slots=1, device="cpu")
    asked = clip("demo_2.opus")
    heard = sound((0.8, asked), (5.6, asked), seconds=11)
    return {"silent": call(engine, heard, sampling=MUTE), "fine": call(engine, heard)}


@pytest.fixture
def journal(tmp_path: Path, told: dict[str, Told], checkpoint: Checkpoint) -> Iterator[Journal]:
    opened = open_journal(tmp_path / "data")
    for number, name in enumerate(("silent", "fine")):
        for person in range(3):
            keep(
                opened, f"{name}{person}", told[name], user_hash=f"person{person}", checkpoint=checkpoint.name,
                sampling=MUTE if name == "silent" and person == 0 else SamplingParams(use_sampling=False),
            )  # fmt: skip
        keep(opened, f"private{number}", told[name], train=False, checkpoint=checkpoint.name)
    yield opened
    opened.engine.dispose()


def of_kind(moments: list[Moment], kind: PairKind | None) -> list[Moment]:
    return [each for each in moments if each.kind is kind]


@pytest.mark.mini
def test_where_the_moments_lie_and_whose_they_are(
    journal: Journal, checkpoint: Checkpoint, told: dict[str, Told]
) -> None:
    moments = find_moments(journal, checkpoint, learned=["silent2"])
    silent = of_kind(moments, PairKind.NO_RESPONSE)
    assert {each.session for each in silent} == {"silent0", "silent1"}, "not those it learned from, nor private ones"
    ended_s = next(each.t0 for each in told["silent"].signals if each.kind is SignalKind.NO_RESPONSE)
    assert (silent[0].at_tick + 1) * FRAME_S == pytest.approx(ended_s + 0.24, abs=FRAME_S)
    assert np.array_equal(silent[0].past_PK, told["silent"].tokens_TK[: silent[0].at_tick])
    assert len(silent[0].heard_TU) == round(2.5 / FRAME_S)
    answers = of_kind(moments, None)
    assert {each.session for each in answers} <= {"fine0", "fine1", "fine2"}
    one = find_moments(journal, checkpoint, learned=(), most=1)
    assert len(of_kind(one, PairKind.NO_RESPONSE)) == 1
    each_person = find_moments(journal, checkpoint, learned=(), of_one=1)
    people = [each.session[-1] for each in of_kind(each_person, None)]
    assert len(people) == len(set(people))


@pytest.mark.mini
@pytest.mark.parametrize(("after_s", "counts"), [(1.4, False), (3.0, True)])
def test_where_the_caller_may_have_gone_on_no_answer_was_right(
    tmp_path: Path, checkpoint: Checkpoint, told: dict[str, Told], after_s: float, counts: bool
) -> None:
    """The rest of a question after a pause, one short word, is taken for a hum over the reply."""
    fine = told["fine"]
    first = next(each for each in fine.signals if each.kind is SignalKind.RESPONSE)
    at_s = first.t0 + after_s
    hum = Signal(id=90, kind=SignalKind.BACKCHANNEL, t0=at_s, t1=at_s + 0.3, confidence=0.5)
    journal = open_journal(tmp_path)
    hummed = msgspec.structs.replace(fine, signals=[*fine.signals, hum])
    keep(journal, "call", hummed, checkpoint=checkpoint.name, sampling=SamplingParams(use_sampling=False))
    moments = [each.at_tick * FRAME_S for each in find_moments(journal, checkpoint, learned=())]
    assert any(at == pytest.approx(first.t0, abs=2 * FRAME_S) for at in moments) is counts
    journal.engine.dispose()


@pytest.mark.mini
def test_what_two_models_do_there(journal: Journal, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One that is always mute makes every silence again and gives no answer; the base model is between."""
    moments = find_moments(journal, checkpoint, learned=())
    plain = [each for each in moments if each.sampling.pad_mult == 0]
    base = play_moments(checkpoint, plain)
    again = play_moments(checkpoint, plain)
    assert base == again, "the same each time"
    columns = [each.past_PK.astype(np.int64) for each in plain]
    mute = hacks.push(checkpoint.lm, columns, [np.full(len(each), 60.0) for each in columns])
    with_mute = play_moments(checkpoint, plain, adapter=hacks.write(tmp_path / "mute", mute))
    assert with_mute.answers.value == 0.0
    assert with_mute.faults.value == 1.0
    assert base.answers.of == with_mute.answers.of > 0
    assert (base.faults.value or 0.0) < 1.0, "asked without the muting, it answers some of them"
    checks = check_recorded(base, with_mute, RecordedLimits(moments=1))
    assert all(check.value is not None for check in checks)


def test_a_moment_is_named_by_call_and_place() -> None:
    moment = Moment(
        session="call", at_tick=7, kind=None, quiet=0, sampling=SamplingParams(),
        past_PK=np.zeros((20, 13), np.int16), heard_TU=np.zeros((4, 6), np.int16),
    )  # fmt: skip
    assert moment.name == "call/7"
    assert msgspec.structs.replace(moment, at_tick=8).name != moment.name
