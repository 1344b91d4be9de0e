"""A kept call goes on in another way: the past as it was, the wish obeyed, the same every time."""

from typing import Any

import numpy as np
import pytest

from online_align.regenerate import Branch, RegenerationError, Regenerator, seeds, silence, word_pieces
from online_align.replay import load
from server.engine import Engine, SamplingParams
from tests.align.told import Told, call, sound, spoken, words
from tests.signals.sounds import clip

pytestmark = pytest.mark.mini

SAMPLED = SamplingParams(text_temperature=0.8, audio_temperature=0.7)
PARTING = 25
USER = slice(7, None)


@pytest.fixture(scope="module")
def told() -> Told:
    """A sampled call: "What is the capital of France?", answered."""
    engine = Engine.load("mini", slots=1, device="cpu")
    return call(engine, sound((0.8, clip("demo_2.opus")), seconds=5), sampling=SAMPLED, seed=5)


@pytest.fixture(scope="module")
def speaker() -> Regenerator:
    return Regenerator(load("mini"), branches=4)


def branch(speaker: Regenerator, told: Told, *branches: Branch, at: int = PARTING, **more: Any) -> list[np.ndarray]:
    speaker.tell(told.tokens_TK, sampling=SAMPLED, seed=told.seed)
    return speaker.branch(at, told.tokens_TK[at:, USER], branches, **more)


@pytest.mark.parametrize("at", [0, 1, 2, PARTING, 35])
def test_left_alone_with_its_seed_it_says_what_was_logged(speaker: Regenerator, told: Told, at: int) -> None:
    """From anywhere, also out of the middle of a word: so the past is the same to the last bit."""
    (again,) = branch(speaker, told, Branch(seed=told.seed), at=at, until_over=False)
    assert len(again) == len(told.tokens_TK) - at
    assert np.array_equal(again, told.tokens_TK[at:])


def test_branches_side_by_side_say_what_each_says_alone(speaker: Regenerator, told: Told) -> None:
    wishes = [
        Branch(seed=11),
        Branch(seed=12, quiet_until=10, start_by=14),
        Branch(seed=13, start_by=0),
        Branch(seed=14, words=word_pieces(speaker.checkpoint.text_tokenizer, "It is Paris.")),
    ]
    together = branch(speaker, told, *wishes, until_over=False)
    alone = [branch(speaker, told, wish, until_over=False)[0] for wish in wishes]
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))
    assert len({columns.tobytes() for columns in together}) > 2


def test_what_the_caller_says_is_what_was_given(speaker: Regenerator, told: Told) -> None:
    (said,) = branch(speaker, told, Branch(seed=3), until_over=False)
    assert np.array_equal(said[:, USER], told.tokens_TK[PARTING:, USER])
    still = np.tile(silence(speaker.checkpoint.mimi), (20, 1))
    (said,) = speaker.branch(PARTING, still, [Branch(seed=3)], until_over=False)
    assert np.array_equal(said[:, USER], still)


def test_it_is_quiet_until_it_may_speak_and_begins_when_it_must(speaker: Regenerator, told: Told) -> None:
    held, now, free = branch(
        speaker,
        told,
        Branch(seed=5, quiet_until=12, start_by=14),
        Branch(seed=5, start_by=0),
        Branch(seed=5),
    )
    assert spoken(held[:, 0])[0] >= 12
    assert spoken(now[:, 0])[0] == 1, "the padding that announces a word, then the word"
    assert spoken(now[:, 0])[0] < spoken(free[:, 0])[0] < spoken(held[:, 0])[0]


@pytest.mark.parametrize("sentence", ["The capital of France is Ankara.", "I do not know that."])
def test_it_says_given_words_in_its_own_time_and_then_nothing(speaker: Regenerator, told: Told, sentence: str) -> None:
    tokenizer = speaker.checkpoint.text_tokenizer
    given = word_pieces(tokenizer, sentence)
    (said,) = branch(speaker, told, Branch(seed=5, words=given, start_by=4), until_over=False)
    text = said[:, 0]
    assert [int(token) for token in text[spoken(text)]] == list(given)
    assert words(tokenizer, text) == sentence
    gaps = np.diff(spoken(text))
    assert gaps.min() == 1
    assert gaps.max() <= 9


def test_it_ends_after_the_reply(speaker: Regenerator, told: Told) -> None:
    (said,) = branch(speaker, told, Branch(seed=told.seed))
    assert len(said) == min(spoken(said[:, 0])[-1] + 13, len(told.tokens_TK) - PARTING)


def test_seeds_are_the_same_for_the_same_name() -> None:
    assert seeds("pair", 3) == seeds("pair", 3)
    assert len(set(seeds("pair", 3) + seeds("other", 3))) == 6
    assert all(0 <= seed < 2**63 for seed in seeds("pair", 20))


def test_what_cannot_be_told_is_refused(speaker: Regenerator, told: Told) -> None:
    with pytest.raises(RegenerationError, match=r"\[frames, 13\]"):
        speaker.tell(told.tokens_TK[:, :9], sampling=SAMPLED, seed=1)
    speaker.tell(told.tokens_TK, sampling=SAMPLED, seed=1)
    with pytest.raises(RegenerationError, match="1 to 4"):
        speaker.branch(3, told.tokens_TK[3:, USER], [Branch(seed=1)] * 5)
    with pytest.raises(RegenerationError, match="tell the call again"):
        speaker.branch(500, told.tokens_TK[3:, USER], [Branch(seed=1)])
