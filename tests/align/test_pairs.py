"""Pairs from calls of the embedded model: each kind, where its sides part, and what is not made."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sqlalchemy import update

from online_align.__main__ import main
from online_align.answers import Answers
from online_align.conversation import Word
from online_align.judge import AXES, Exchange, Marks, NoMarksError
from online_align.judge_rules import RuleJudge
from online_align.pair_mix import Mix
from online_align.pair_store import PairStore
from online_align.pairs import PairBuilder, PairSettings, Tally, longest_stretch
from online_align.records import Pair, PairKind
from online_align.regenerate import Branch, Regenerator, silence, word_pieces
from online_align.replay import load
from server.engine import Engine, SamplingParams
from server.engine.adapters import file_sha256
from server.engine.checkpoint import MINI, Checkpoint
from server.journal import Columns, Journal, open_journal, schema
from server.signals import Signal, SignalKind
from tests.align.told import FRAME_S, GREEDY, Told, call, dubbed, keep, sound, spoken, with_pause
from tests.signals.sounds import clip

pytestmark = pytest.mark.mini

DOMAIN = Path(__file__).parents[2] / "recipes" / "mini" / "domain.toml"
MUTE = SamplingParams(use_sampling=False, pad_mult=100.0)
USER = slice(7, None)
CUT_IN_S = 8.0


class Calls(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One call of each kind of fault, and one without."""

    paused: Told
    mute: Told
    unyielding: Told
    wrong: Told
    fine: Told


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load("mini")


@pytest.fixture(scope="module")
def calls(checkpoint: Checkpoint) -> Calls:
    engine = Engine.load("mini", slots=1, device="cpu")
    asked = clip("demo_2.opus")
    # "What is two plus ... four?"
    paused = call(engine, sound((0.8, with_pause("demo_3.opus", 0.78, 0.9)), seconds=7))
    # Nobody answers, and the caller asks again.
    mute = call(engine, sound((0.8, asked), (5.6, asked), seconds=8), sampling=MUTE)
    # It tells to the end, whoever cuts in.
    moon, cut_in = (0.8, clip("demo_5.opus")), (CUT_IN_S, clip("demo_4.opus"))
    patient = call(engine, sound(moon, seconds=13))
    unyielding = dubbed(engine, call(engine, sound(moon, cut_in, seconds=13)), patient)
    fine = call(engine, sound((0.8, asked), seconds=7))
    return Calls(paused=paused, mute=mute, unyielding=unyielding, wrong=_with_wrong_answer(checkpoint, fine), fine=fine)


def _with_wrong_answer(checkpoint: Checkpoint, fine: Told) -> Told:
    """The same call, but it says something wrong, and the caller presses a thumb down."""
    at = int(spoken(fine.tokens_TK[:, 0])[0]) - 1
    speaker = Regenerator(checkpoint, branches=1)
    speaker.tell(fine.tokens_TK, sampling=GREEDY, seed=fine.seed)
    wrong = word_pieces(checkpoint.text_tokenizer, "The capital of France is Rome.")
    (said,) = speaker.branch(at, fine.tokens_TK[at:, USER], [Branch(seed=1, words=wrong, start_by=0)], until_over=False)
    thumb = Signal(id=9, kind=SignalKind.FEEDBACK, t0=5.5, t1=5.5, confidence=1.0, value="down")
    return msgspec.structs.replace(
        fine, tokens_TK=np.concatenate([fine.tokens_TK[:at], said]), signals=[*fine.signals, thumb]
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path)
    yield opened
    opened.engine.dispose()


def builder(journal: Journal, checkpoint: Checkpoint, tmp_path: Path, **more: object) -> PairBuilder:
    settings = PairSettings(branches=3, **more)  # type: ignore[arg-type]
    return PairBuilder(
        journal, checkpoint, data_dir=tmp_path, settings=settings, judge=RuleJudge(Answers.read(DOMAIN)),
        clock=lambda: 5.0,
    )  # fmt: skip


def made(journal: Journal, checkpoint: Checkpoint, tmp_path: Path, told: Told) -> tuple[Pair, Tally]:
    keep(journal, "call", told)
    tally = builder(journal, checkpoint, tmp_path).build()
    (pair,) = PairStore(journal).read()
    for side in (pair.chosen, pair.rejected):
        assert side.tokens_TK.dtype == np.int16
        assert side.tokens_TK.shape[1] == told.tokens_TK.shape[1]
        assert side.tokens_TK.min() >= 0
    assert np.array_equal(pair.context_PK, told.tokens_TK[: pair.at_tick]), "the whole past"
    until = pair.at_tick + len(pair.rejected.tokens_TK)
    assert np.array_equal(pair.rejected.tokens_TK, told.tokens_TK[pair.at_tick : until]), "what was really said"
    assert (pair.session, pair.policy, pair.made_at, pair.reference) == ("call", "", 5.0, None)
    return pair, tally


def starts(pair: Pair) -> float:
    """Second of the call at which the better side says its first word."""
    return float((pair.at_tick + spoken(pair.chosen.tokens_TK[:, 0])[0] + 1) * FRAME_S)


def test_a_pause_taken_gives_a_side_that_waits_for_the_end(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    (early,) = [each for each in calls.paused.signals if each.kind is SignalKind.PAUSE_TAKEOVER]
    pair, tally = made(journal, checkpoint, tmp_path, calls.paused)
    assert pair.kind is PairKind.CUT_OFF
    assert tally.made == {"B": 1}
    assert pair.evidence.rule.endswith("/pause_takeover")
    assert pair.evidence.signals == (early.id,)
    first = pair.rejected.tokens_TK[:2, 0]
    assert not np.isin(first, (3,)).all(), "the rejected side speaks from the first frame on"
    assert pair.event == 0
    assert early.t1 <= starts(pair) <= early.t1 + 0.8
    assert pair.chosen.words
    assert pair.chosen.words != pair.rejected.words


def test_a_silence_gives_a_side_that_answers(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    (silent, *_) = [each for each in calls.mute.signals if each.kind is SignalKind.NO_RESPONSE]
    pair, _ = made(journal, checkpoint, tmp_path, calls.mute)
    assert pair.kind is PairKind.NO_RESPONSE
    assert (pair.at_tick + 1) * FRAME_S == pytest.approx(silent.t0 + 0.24, abs=FRAME_S)
    assert pair.rejected.words == ""
    assert not len(spoken(pair.rejected.tokens_TK[:, 0]))
    assert (pair.at_tick + len(pair.rejected.tokens_TK)) * FRAME_S <= 5.7, "before the caller asks again"
    assert starts(pair) <= silent.t0 + 0.8
    assert "capital of France" in pair.chosen.words


def test_talking_on_gives_a_side_that_stops_and_answers_what_cut_in(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    kinds = {each.kind for each in calls.unyielding.signals}
    assert SignalKind.NO_YIELD in kinds
    pair, _ = made(journal, checkpoint, tmp_path, calls.unyielding)
    assert pair.kind is PairKind.NO_YIELD
    assert pair.event == -3
    assert (pair.at_tick + pair.event + 1) * FRAME_S == pytest.approx(CUT_IN_S, abs=0.2)
    text = pair.chosen.tokens_TK[:, 0]
    over_at_s = CUT_IN_S + len(clip("demo_4.opus")) / 16_000
    assert starts(pair) > over_at_s - 0.4, "nothing while the caller speaks"
    assert starts(pair) < over_at_s + 0.8
    assert np.array_equal(
        pair.chosen.tokens_TK[:20, USER], calls.unyielding.tokens_TK[pair.at_tick : pair.at_tick + 20, USER]
    )
    assert len(spoken(pair.rejected.tokens_TK[:10, 0])), "the rejected side talks on"
    assert len(spoken(text))


def test_a_thumb_down_gives_a_side_with_better_words(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    pair, _ = made(journal, checkpoint, tmp_path, calls.wrong)
    assert pair.kind is PairKind.CONTENT
    assert pair.evidence.signals == (9,)
    assert pair.evidence.judge == "rules-1"
    assert pair.evidence.scores["chosen"] >= pair.evidence.scores["rejected"] + 0.5
    assert "Rome" in pair.rejected.words
    assert pair.chosen.words == "The capital of France is Paris."


class Contrary:
    """A judge that wants something the model would never say by itself."""

    name = "contrary-1"
    wanted = "The capital of France is Madrid."

    def marks(self, exchanges: Sequence[Exchange]) -> list[Marks]:
        return [Marks(axes=dict.fromkeys(AXES, 5.0 if each.reply == self.wanted else 2.0)) for each in exchanges]

    def better_words(self, exchange: Exchange) -> str | None:
        return self.wanted


def test_where_no_sample_is_good_the_judges_words_are_said(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    keep(journal, "call", calls.wrong)
    PairBuilder(journal, checkpoint, data_dir=tmp_path, settings=PairSettings(branches=2), judge=Contrary()).build()
    (pair,) = PairStore(journal).read()
    assert pair.chosen.words == Contrary.wanted
    assert pair.evidence.scores["chosen"] == 5.0


class Reluctant(Contrary):
    """A judge that will not read what one caller said."""

    def marks(self, exchanges: Sequence[Exchange]) -> list[Marks]:
        raise NoMarksError(got="status 400", expected="status 200", remedy="ask something else")


def test_a_call_that_the_judge_will_not_read_stops_no_other(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    keep(journal, "call", calls.wrong)
    settings = PairSettings(branches=2)
    found = PairBuilder(journal, checkpoint, data_dir=tmp_path, settings=settings, judge=Reluctant())
    assert found.build().refused == {"the judge has no marks for it": 1}
    assert found.build().sessions == 0, "it is not asked about the same again and again"


class Deaf:
    """A recogniser that hears something else."""

    name = "deaf"

    def hear(self, pcm: np.ndarray) -> list[Word]:
        assert pcm.dtype == np.float32
        return [Word(text="Paris", t0=0.0, t1=0.1)]


def test_words_that_cannot_be_heard_in_its_sound_make_no_pair(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    keep(journal, "call", calls.wrong)
    tally = PairBuilder(
        journal, checkpoint, data_dir=tmp_path, settings=PairSettings(branches=2), judge=Contrary(), recogniser=Deaf()
    ).build()
    assert tally.refused == {"given words are not heard in its sound": 1}


def test_a_call_without_complaints_and_one_that_may_not_be_trained_on_give_nothing(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    keep(journal, "fine", calls.fine)
    keep(journal, "private", calls.paused, train=False)
    tally = builder(journal, checkpoint, tmp_path).build()
    assert (tally.sessions, tally.made.total(), tally.refused.total()) == (1, 0, 0)
    assert not PairStore(journal).ids()


def test_running_again_adds_nothing_and_says_the_same(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    keep(journal, "call", calls.paused)
    first = builder(journal, checkpoint, tmp_path)
    assert first.build().made.total() == 1
    assert first.build().sessions == 0, "this builder has seen it"
    again = builder(journal, checkpoint, tmp_path).build()
    assert (again.made.total(), again.known) == (0, 1)
    (before,) = PairStore(journal).read()
    with journal.engine.begin() as connection:
        connection.execute(schema.pairs.delete())
    builder(journal, checkpoint, tmp_path).build()
    (after,) = PairStore(journal).read()
    assert after.id == before.id
    assert np.array_equal(after.chosen.tokens_TK, before.chosen.tokens_TK)


def test_of_a_call_the_first_fault_and_one_more_at_most(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """What was made before counts."""
    _keep_three_faults(journal)
    store = PairStore(journal)
    assert builder(journal, checkpoint, tmp_path).build().made == {"C": 2}
    first, second = sorted(pair.at_tick for pair in store.read())
    tally = builder(journal, checkpoint, tmp_path, per_session=3).build()
    assert tally.made == {"C": 1}, f"there were three: {tally}"
    assert sorted(pair.at_tick for pair in store.read())[:2] == [first, second]
    with journal.engine.begin() as connection:
        connection.execute(schema.pairs.delete().where(schema.pairs.c.at_tick == first))
    tally = builder(journal, checkpoint, tmp_path).build()
    assert (tally.made.total(), tally.known) == (0, 2)


def test_one_more_at_most_also_when_the_first_fault_gives_no_pair(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    _keep_three_faults(journal)
    tally = builder(journal, checkpoint, tmp_path, least_context_s=4.0).build()
    assert (tally.complaints, tally.made) == ({"C": 3}, {"C": 1})
    assert tally.refused == {"too little was kept before it": 1}
    again = builder(journal, checkpoint, tmp_path).build()
    assert (again.made, again.known) == ({"C": 1}, 1), "the first one's place was kept"


def _keep_three_faults(journal: Journal) -> None:
    """Nobody answers him three times, and he asks again each time."""
    engine = Engine.load("mini", slots=1, device="cpu")
    asked = [(0.8 + 4.8 * number, clip(f"demo_{which}.opus")) for number, which in enumerate((2, 4, 3, 2))]
    keep(journal, "call", call(engine, sound(*asked, seconds=17.5), sampling=MUTE))


def test_the_same_call_twice_is_one_pair(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    keep(journal, "one", calls.paused)
    keep(journal, "two", calls.paused, user_hash="somebody")
    assert builder(journal, checkpoint, tmp_path).build().refused == {"the same as another": 1}


@pytest.mark.parametrize("user_hash", ["somebody", ""])
def test_a_caller_has_a_cap_and_the_anonymous_are_one_caller(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls, user_hash: str
) -> None:
    keep(journal, "one", calls.paused, user_hash=user_hash)
    keep(journal, "two", calls.mute, user_hash=user_hash)
    tally = builder(journal, checkpoint, tmp_path, mix=Mix(per_user=1, user_share=0.0)).build()
    assert (tally.made.total(), tally.refused) == (1, {"enough of this caller": 1})


def test_a_model_in_a_folder_is_known_by_its_name_alone(journal: Journal, tmp_path: Path, calls: Calls) -> None:
    """The journal does not say where an operator keeps it, and the learner is told just that."""
    folder = tmp_path / "models" / "kept-here"
    folder.parent.mkdir()
    folder.symlink_to(MINI)
    keep(journal, "call", calls.paused, checkpoint=folder)
    assert journal.reader.session("call").checkpoint == "kept-here"
    assert builder(journal, load(str(folder)), tmp_path).build().made.total() == 1


def test_pairs_of_a_deleted_call_are_gone(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    made(journal, checkpoint, tmp_path, calls.paused)
    journal.removal.session("call")
    assert PairStore(journal).read() == []
    assert builder(journal, checkpoint, tmp_path).build().sessions == 0


def test_calls_of_other_models_and_adapters_that_are_gone_are_counted(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    keep(journal, "other", calls.paused, checkpoint="another")
    keep(journal, "otherweights", calls.paused, base_sha256="0" * 64)
    keep(journal, "adapted", calls.paused)
    with journal.engine.begin() as connection:
        adapted = schema.sessions.c.id == "adapted"
        connection.execute(update(schema.sessions).where(adapted).values(adapter="gone"))
    ours = builder(journal, checkpoint, tmp_path)
    assert ours.build().refused == {"a call of another model": 2, "its adapter is gone": 1}
    assert "a call of another model" not in ours.build().refused, "it is not looked at again"


def test_a_model_that_is_named_by_its_folder_is_the_one_that_was_called(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    by_folder = msgspec.structs.replace(checkpoint, name=str(MINI))
    keep(journal, "named", calls.fine)
    keep(journal, "moved", calls.fine, checkpoint="moved", base_sha256=file_sha256(checkpoint.lm_path))
    tally = builder(journal, by_folder, tmp_path).build()
    assert (tally.sessions, tally.refused) == (2, {})


def test_of_a_call_with_gaps_the_longest_stretch_counts() -> None:
    ticks = np.array([0, 1, 5, 6, 7, 8, 20])
    columns = Columns(ticks_T=ticks, tokens_TK=ticks[:, None].astype(np.int16), logprob_T=ticks.astype(np.float32))
    stretch = longest_stretch(columns)
    assert stretch is not None
    assert stretch.ticks_T.tolist() == [5, 6, 7, 8]
    assert stretch.tokens_TK[:, 0].tolist() == [5, 6, 7, 8]
    empty = Columns(ticks_T=ticks[:0], tokens_TK=columns.tokens_TK[:0], logprob_T=columns.logprob_T[:0])
    assert longest_stretch(empty) is None


def test_the_caller_is_silent_after_his_reaction_on_the_better_side(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls
) -> None:
    """He asks again because nobody answered: who was answered would not."""
    pair, _ = made(journal, checkpoint, tmp_path, calls.mute)
    beyond = pair.chosen.tokens_TK[len(pair.rejected.tokens_TK) + 2 :, USER]
    still = silence(checkpoint.mimi)
    assert all(np.array_equal(column, still) for column in beyond)


def test_the_command_makes_lists_and_sounds(
    journal: Journal, tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    import soundfile

    keep(journal, "call", calls.paused)
    where = ["pairs", "--data-dir", str(tmp_path)]
    offline = ["--recogniser", "none", "--answers", str(DOMAIN), "--branches", "2"]
    assert main([*where, *offline, "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["made"] == {"B": 1}
    assert main([*where, "--list", "--json"]) == 0
    (known,) = msgspec.json.decode(capsys.readouterr().out)
    wavs = [str(tmp_path / "chosen.wav"), str(tmp_path / "rejected.wav")]
    assert main([*where, "--inspect", known["id"], "--wav", *wavs, "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["kind"] == "B"
    begun = {}
    for name, path in zip(("chosen", "rejected"), wavs, strict=True):
        pcm, rate = soundfile.read(path)
        assert rate == 16_000
        model = np.abs(pcm[:, 1])
        begun[name] = int(np.argmax(model > 0.02)) / rate
    assert begun["chosen"] > begun["rejected"] + 0.5, "one waits, the other does not"
    assert main([*where, "--list"]) == 0
    assert known["id"] in capsys.readouterr().out
    lost = [str(tmp_path / "nowhere" / "a.wav"), wavs[1]]
    assert main([*where, "--inspect", known["id"], "--wav", *lost]) == 1
    assert "cannot be written" in capsys.readouterr().err
    for wrong in (["--wav", *wavs], ["--inspect", known["id"], "--wav", wavs[0], wavs[0]], ["--branches", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main([*where, *wrong])
    assert main([*where, "--inspect", ""]) == 1, "an empty name is no wish to make pairs"
    capsys.readouterr()
    assert main([*where, "--inspect", "nobody"]) == 1
    assert "pairs --list" in capsys.readouterr().err
    assert main([*where, "--judge", "rules", "--answers", str(tmp_path / "none.toml")]) == 1


def test_looking_for_pairs_makes_no_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", "--data-dir", str(tmp_path / "typo"), "--list"]) == 1
    assert "where no call was ever kept" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_a_pair_is_heard_with_the_model_that_was_called(
    journal: Journal, checkpoint: Checkpoint, tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, _ = made(journal, checkpoint, tmp_path, calls.paused)
    with journal.engine.begin() as connection:
        connection.execute(update(schema.sessions).values(checkpoint="another"))
    wavs = [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    assert main(["pairs", "--data-dir", str(tmp_path), "--inspect", pair.id, "--wav", *wavs]) == 1
    assert "with another, to be heard with mini" in capsys.readouterr().err
