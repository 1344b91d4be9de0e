"""Words on the frame grid."""

import numpy as np
import sentencepiece

from recipes.mini import text
from server.engine.checkpoint import MINI

TOKENIZER = sentencepiece.SentencePieceProcessor(str(MINI / "tokenizer.model"))
WORDS = [("two", 0.0, 0.3), ("plus", 0.3, 0.6), ("two", 0.62, 0.9), ("is", 0.9, 1.0), ("four", 1.0, 1.4)]


def _laid_out(stop: int = 1000) -> np.ndarray:
    line = np.full(40, text.PADDING)
    text.lay_out(line, WORDS, "Two plus two is four.", TOKENIZER, 10, stop)
    return line


def test_first_word_starts_with_its_sound_and_the_others_a_frame_before() -> None:
    """Otherwise the text stream could read a word from the sound that precedes it."""
    line = _laid_out()
    starts = [TOKENIZER.encode(word)[0] for word in "Two plus two is four.".split()]
    found = [
        int(np.flatnonzero(line[at:] == piece)[0]) + at for at, piece in zip((10, 11, 14, 18, 20), starts, strict=True)
    ]
    assert found == [10, 12, 16, 20, 21]
    assert (
        TOKENIZER.decode([int(t) for t in line if t not in (text.PADDING, text.END_OF_PADDING)])
        == "Two plus two is four."
    )


def test_a_run_of_padding_ends_with_its_own_token() -> None:
    """One frame before a word that follows padding, and nowhere else."""
    line = _laid_out()
    ends = np.flatnonzero(line == text.END_OF_PADDING)
    assert 9 in ends
    assert all(line[at + 1] not in (text.PADDING, text.END_OF_PADDING) for at in ends)


def test_nothing_is_written_once_the_model_gave_way() -> None:
    """An interrupted reply has no words after its sound."""
    assert set(_laid_out(stop=16)[16:]) == {text.PADDING}
    assert set(_laid_out(stop=16)[:16]) > {text.PADDING}


def test_the_tokenizer_has_moshis_special_ids() -> None:
    """The stock server never sends 0 and 3 and takes the rest for words."""
    assert TOKENIZER.pad_id() == text.PADDING
    assert TOKENIZER.unk_id() == text.END_OF_PADDING
    assert TOKENIZER.get_piece_size() == text.VOCABULARY
