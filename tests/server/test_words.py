"""Tokens to text, against sentencepiece's own decoder."""

import io

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from server.words import WordReader

PAD, END_OF_PAD = 3, 0


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    """With byte fallback, as Moshi's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the moon is far away", "hello there", "how are you"]),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        pad_id=PAD,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture
def reader(tokenizer: sentencepiece.SentencePieceProcessor) -> WordReader:
    return WordReader(tokenizer, silent=frozenset((PAD, END_OF_PAD)))


def test_silence_and_control_tokens_say_nothing(reader: WordReader) -> None:
    assert [reader.read(token) for token in (PAD, END_OF_PAD, -1, -2, 1, 2)] == [""] * 6


def test_a_word_begins_with_a_space(reader: WordReader, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    assert "".join(reader.read(token) for token in tokenizer.encode("hello there")) == " hello there"


def test_bytes_wait_for_their_character_also_through_silence(
    reader: WordReader, tokenizer: sentencepiece.SentencePieceProcessor
) -> None:
    first, second = (tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in "é".encode())
    assert [reader.read(token) for token in (first, PAD, second)] == ["", "", "é"]


def test_a_broken_character_is_shown_as_one_and_nothing_is_lost(
    reader: WordReader, tokenizer: sentencepiece.SentencePieceProcessor
) -> None:
    half = tokenizer.piece_to_id("<0xC3>")
    word = tokenizer.piece_to_id("▁")
    assert [reader.read(token) for token in (half, word, word)] == ["", "\ufffd ", " "]


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁ "), min_size=1, max_size=20))
def test_any_text_comes_back(tokenizer: sentencepiece.SentencePieceProcessor, text: str) -> None:
    reader = WordReader(tokenizer, silent=frozenset((PAD, END_OF_PAD)))
    said = "".join(reader.read(token) for token in tokenizer.encode(text))
    assert said == " " + tokenizer.decode(tokenizer.encode(text))
    assert "<0x" not in said or "<0x" in text
