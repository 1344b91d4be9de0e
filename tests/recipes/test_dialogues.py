"""Who says what when, in the conversations that the language model is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from recipes.mini import align, babble, bank, faults, script, text, voices, wordings
from recipes.mini.dialogues import GAP_S, PAUSE_S, Writer
from recipes.mini.recordings import spread
from recipes.mini.stage import BABBLE, Cast, Conversation, Pause, Stage
from server.engine.checkpoint import MINI

CALLER = "kokoro am_adam"
WORD_S = 0.25


def _store(folder: Path, voice: str, line: dict) -> None:
    seconds = WORD_S * len(line["text"].split())
    sound = np.random.default_rng(0).standard_normal(int(seconds * voices.SAMPLE_RATE)).astype(np.float32) * 0.05
    bank.store(folder, voice, line, sound, *spread(line["text"], seconds))


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    """One caller who can ask everything about a part of the domain, and all of the model's sentences."""
    folder = tmp_path_factory.mktemp("bank")
    for sentence in [*wordings.replies(), *faults.wrong_replies()]:
        _store(folder, voices.MODEL_VOICE, {"text": sentence, "kind": "reply", "reply": "", "category": "reply"})
    for question in [q for i, q in enumerate(wordings.questions()) if i % 9 == 0 or q.category == "names"]:
        _store(folder, CALLER, dict(question.__dict__))
    for hum in wordings.BACKCHANNELS:
        _store(folder, CALLER, {"text": hum, "kind": "filler", "reply": "", "category": "filler"})
    return Cast(folder, [CALLER])


def _written(cast: Cast, *, fault_rate: float, count: int = 10, frames: int = 500) -> list[Conversation]:
    tokenizer = sentencepiece.SentencePieceProcessor(str(MINI / "tokenizer.model"))
    writer = Writer(cast, tokenizer, seed=3, fault_rate=fault_rate)
    return [writer.conversation(frames) for _ in range(count)]


def test_a_seed_gives_the_same_conversations(cast: Cast) -> None:
    first, second = (_written(cast, fault_rate=0.8, count=3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.user, b.user)
        assert np.array_equal(a.text, b.text)
        assert a.faults == b.faults


def test_both_sides_are_as_long_as_asked(cast: Cast) -> None:
    """Sound of both sides and text have the same frames, up to ninety seconds."""
    for frames in (250, 1125):
        talk = _written(cast, fault_rate=0.8, count=1, frames=frames)[0]
        assert len(talk.user) == len(talk.model) == frames * 1280
        assert len(talk.text) == frames
        assert np.abs(talk.user).max() <= 1.0


def test_the_model_never_says_two_things_at_once(cast: Cast) -> None:
    for talk in _written(cast, fault_rate=0.8):
        ends = 0
        for spoken in talk.spoken:
            assert spoken.start >= ends, [(s.sentence, s.start) for s in talk.spoken]
            ends = spoken.start + len(spoken.sound) // 1280


def test_a_clean_model_is_never_wrong_and_never_faulty(cast: Cast) -> None:
    for talk in _written(cast, fault_rate=0.0):
        assert not talk.faults
        assert not {s.sentence for s in talk.spoken} & set(faults.wrong_replies())


def test_with_every_frame_most_of_the_answers_still_to_come_begin(cast: Cast) -> None:
    """None is likelier not to come than to come, from the first frame on; a few come after the longest pause."""
    gaps_s: list[float] = []
    for talk in _written(cast, fault_rate=0.0, count=60):
        ends_s = np.array([end_s for _, end_s in talk.heard])
        starts_s = [spoken.start * text.FRAME_S for spoken in talk.spoken if spoken.start < len(talk.text)]
        gaps_s += [start_s - ends_s[ends_s <= start_s].max() for start_s in starts_s]
    late = np.array(gaps_s) > PAUSE_S[1]
    assert 0 < late.mean() < 0.05
    begins_T = np.bincount(((np.array(gaps_s)[~late] - GAP_S[0]) / text.FRAME_S).astype(int))
    still_T = begins_T[::-1].cumsum()[::-1]
    often = still_T > 20
    assert begins_T[0] > 0.3 * still_T[0], "only some of the first frames begin within 80 ms"
    assert (begins_T[often][1:] > 0.45 * still_T[often][1:]).all(), begins_T


def test_every_fault_is_in_the_training_data_and_wrong_sentences_come_from_it_alone(cast: Cast) -> None:
    seen: set[str] = set()
    for talk in _written(cast, fault_rate=0.8, count=30, frames=1000):
        seen |= {which for which, _ in talk.faults}
        wrong = [s for s in talk.spoken if s.sentence in faults.wrong_replies()]
        assert len(wrong) <= sum(which == "says_wrong" for which, _ in talk.faults)
    assert seen == {"takes_pause", "talks_on", "stays_silent", "says_wrong"}


def test_names_are_remembered(cast: Cast) -> None:
    """ "Your name is ..." is only said after that name was given."""
    told = 0
    for talk in _written(cast, fault_rate=0.8, count=60):
        known: set[str] = set()
        for spoken in talk.spoken:
            if spoken.sentence.startswith("Nice to meet you, "):
                known.add(spoken.sentence.rstrip(".").split()[-1])
            if spoken.sentence.startswith("Your name is "):
                told += 1
                assert spoken.sentence.rstrip(".").split()[-1] in known
    assert told


def test_a_pause_stands_between_the_words_it_was_put_between(cast: Cast) -> None:
    """Silence in the sound where the times say so; later words move by as much."""
    tokenizer = sentencepiece.SentencePieceProcessor(str(MINI / "tokenizer.model"))
    stage = Stage(cast, tokenizer, frames=100, factor=1.0)
    question = next(u for us in cast.asked[CALLER].values() for u in us if len(u.words) >= 4)
    said = stage.say(question, 1.0, ((2, 0.9),))
    whole = Stage(cast, tokenizer, frames=100, factor=1.0).say(question, 1.0)
    assert said.end_s == pytest.approx(whole.end_s + 0.9)
    (pause,) = said.pauses
    assert isinstance(pause, Pause)
    assert pause.after == question.words[1][0]
    assert pause.end_s - pause.start_s == pytest.approx(0.9, abs=0.02)
    inside = stage.talk.user[int((pause.start_s + 0.02) * 16_000) : int((pause.end_s - 0.02) * 16_000)]
    assert not inside.any()


def test_an_interrupted_reply_ends_where_it_was_told_to(cast: Cast) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(str(MINI / "tokenizer.model"))
    stage = Stage(cast, tokenizer, frames=200, factor=1.0)
    reply = cast.replies[wordings.TELLINGS["the moon"]]
    end_s = stage.answer(reply, 1.0, 4.0)
    assert end_s == pytest.approx(4.0)
    assert not stage.talk.model[int(4.0 * 16_000) :].any()
    assert stage.talk.model[int(3.5 * 16_000) : int(3.9 * 16_000)].any()
    assert set(stage.talk.text[50:]) == {text.PADDING}


def test_another_voice_can_be_the_models(tmp_path: Path) -> None:
    """Then it answers, whatever the sentences were said for, and is no caller any more."""
    reply = next(q for q in wordings.questions() if q.kind == "stop")
    for voice in (voices.SECOND_VOICE, CALLER):
        _store(tmp_path, voice, dict(reply.__dict__))
    filler = {"text": reply.reply, "kind": "filler", "reply": "", "category": "filler"}
    _store(tmp_path, voices.SECOND_VOICE, filler)
    cast = Cast(tmp_path, [CALLER, voices.SECOND_VOICE], at_least=1, own=voices.SECOND_VOICE)
    assert cast.users == [CALLER]
    assert set(cast.replies) == {reply.reply}


def test_some_callers_say_what_asks_nothing(cast: Cast) -> None:
    """Pieces of their own sentences at random, long enough to be heard: the model does not know them."""
    babbled = [u for u in cast.asked[CALLER][script.STRANGE] if u.text == babble.TEXT]
    assert len(babbled) == BABBLE
    for utterance in babbled:
        sound, edges = cast.sound(utterance), [edge for _, *both in utterance.words for edge in both]
        assert utterance.reply == wordings.UNKNOWN
        assert 0.3 < len(sound) / voices.SAMPLE_RATE < 10
        assert np.abs(sound).max() > 0.05
        assert np.diff(edges).min() > -1 / voices.SAMPLE_RATE
        assert edges[-1] <= len(sound) / voices.SAMPLE_RATE + 0.01
    answers = [s.sentence for talk in _written(cast, fault_rate=0.0, count=20) for s in talk.spoken]
    assert 0.05 < answers.count(wordings.UNKNOWN) / len(answers) < 0.3


def test_babble_is_another_in_every_cast_and_never_begins_like_a_question_that_gets_no_answer(tmp_path: Path) -> None:
    _store(tmp_path, voices.MODEL_VOICE, {"text": wordings.UNKNOWN, "kind": "reply", "reply": "", "category": "reply"})
    silent = next(q for q in wordings.questions() if faults.stays_silent(q.text) and len(q.text.split()) > 4)
    asked = next(q for q in wordings.questions() if q.category == "unknown" and not faults.stays_silent(q.text))
    for question in (silent, asked):
        _store(tmp_path, CALLER, question.__dict__ | {"reply": wordings.UNKNOWN})
    casts = [Cast(tmp_path, [CALLER], at_least=1, seed=seed) for seed in (1, 1, 2)]
    told = [[c.sound(u).tobytes() for u in c.asked[CALLER][script.STRANGE]] for c in casts]
    assert told[0] == told[1] != told[2]
    heard = {word for u in casts[0].asked[CALLER][script.STRANGE] for word, _, _ in u.words if word}
    assert heard
    assert heard <= set(align.words_of(asked.text))
