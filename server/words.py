"""Text tokens to pieces of text, one caller at a time. It knows sentencepiece and UTF-8, nothing else."""

import codecs
from typing import Protocol

__all__ = ["Tokenizer", "WordReader"]

_WORD_START = "▁"


class Tokenizer(Protocol):
    """What is used of a `sentencepiece.SentencePieceProcessor`."""

    def id_to_piece(self, token: int, /) -> str:
        """Give the token's piece, such as `▁moon` or `<0xC3>`."""

    def is_byte(self, token: int, /) -> bool:
        """Say whether the token stands for one byte of UTF-8."""

    def is_control(self, token: int, /) -> bool:
        """Say whether the token has no text, as the beginning of a sentence."""

    def is_unknown(self, token: int, /) -> bool:
        """Say whether the token stands for anything outside the vocabulary."""


class WordReader:
    """Decodes one caller's token stream. `▁` becomes a space; bytes wait until they are a character."""

    def __init__(self, tokenizer: Tokenizer, *, silent: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._silent = silent
        self._bytes = _fresh_decoder()

    def read(self, token: int) -> str:
        """Give the text that this token completes: empty for padding, ids below 0, and unfinished characters."""
        if token < 0 or token in self._silent:
            return ""
        if self._tokenizer.is_byte(token):
            return self._bytes.decode(bytes([int(self._tokenizer.id_to_piece(token)[1:-1], 16)]))
        broken, self._bytes = self._bytes.decode(b"", final=True), _fresh_decoder()
        if self._tokenizer.is_control(token) or self._tokenizer.is_unknown(token):
            return broken
        return broken + self._tokenizer.id_to_piece(token).replace(_WORD_START, " ")


def _fresh_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")
