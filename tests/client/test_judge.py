from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import ClientError
from client.judge import Recogniser, agrees, word_error_rate, words
from client.sound import read_frames

SPEECH = Path(__file__).parent.parent / "assets" / "speech"
SENTENCES = st.lists(st.sampled_from("moon earth sun rock".split()), max_size=6)


def edits(want: tuple[str, ...], got: tuple[str, ...]) -> int:
    """Edit distance as it is defined, word by word from the end."""

    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        changed = distance(i - 1, j - 1) + (want[i - 1] != got[j - 1])
        return min(changed, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(want), len(got))


@given(want=SENTENCES, got=SENTENCES)
def test_the_error_rate_is_the_edit_distance(want: list[str], got: list[str]) -> None:
    expected = edits(tuple(want), tuple(got)) / max(len(want), 1)
    assert word_error_rate(" ".join(want), " ".join(got)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Two plus four is six.", "2 plus 4 is 6"), ("Hello, how CAN I help?", "hello how can i help"), ("", "")],
)
def test_words_are_compared_without_case_marks_and_spelling_of_numbers(text: str, expected: str) -> None:
    assert words(text) == expected.split()


@pytest.mark.parametrize(
    ("expected", "said", "right"),
    [
        ("The capital of France is Paris.", "the capital of france is paris", True),
        ("The capital of France is Paris.", "The capital of France is Rome.", False),
        ("The capital of France is Paris.", "The capital of France is Paris. Hello?", False),
        ("Seven.", "7", True),
        ("Seven.", "", False),
        ("", "", True),
        ("", "Hello.", False),
        ("The moon has no air and no water at all.", "The moon has no air and no water at tall.", True),
        ("The moon has no air and no water at all.", "The moon had no air and no water at tall.", False),
        ("Two plus four is six.", "2 + 4 = 6.", True),
        ("Two plus four is six.", "2+4 is 7", False),
        ("Nine minus three is six.", "9 - 3 is 6", True),
        ("Nine minus three is six.", "Nine plus three is six.", False),
        ("Twenty-one.", "21", True),
    ],
)
def test_what_counts_as_right(expected: str, said: str, right: bool) -> None:
    assert agrees(expected, said) is right


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser()


def test_the_recogniser_understands_the_shipped_questions(recogniser: Recogniser) -> None:
    heard = recogniser.hear(np.concatenate(list(read_frames(SPEECH / "demo_2.opus"))))
    assert agrees("What is the capital of France?", heard), heard


def test_the_recogniser_hears_nothing_in_silence(recogniser: Recogniser) -> None:
    assert recogniser.hear(np.zeros(48000, np.float32)) == ""


def test_a_missing_recogniser_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="--recogniser"):
        Recogniser(tmp_path)
