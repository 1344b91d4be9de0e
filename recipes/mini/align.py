"""Forced alignment: when each word and each phoneme of a known sentence is spoken (10 ms grid).

Uses pocketsphinx' two-pass state alignment. Times are seconds from the start of the sound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pocketsphinx import Decoder

__all__ = ["PHONES", "Alignment", "align", "words_of"]

PHONES = (
    "SIL AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
).split()
_EXTRA_WORDS = {
    "abuja": "AH B UW JH AH",
    "dua": "D UW AH",
    "kathmandu": "K AE T M AE N D UW",
    "kyiv": "K IY V",
    "mm-hm": "M HH M",
    "rabat": "R AH B AA T",
    "reykjavik": "R EY K Y AH V IH K",
}


@dataclass(frozen=True)
class Alignment:
    """`words` and `phones`: (name, start_s, end_s), in order; phones hold `SIL` between words."""

    words: list[tuple[str, float, float]]
    phones: list[tuple[str, float, float]]


def words_of(text: str) -> list[str]:
    """Lower-case words of a sentence, punctuation removed."""
    return re.findall(r"[a-z'-]+", text.lower())


@cache
def _decoder() -> Decoder:
    from pocketsphinx import Decoder  # needed by synthesis alone; everything else runs without it

    decoder = Decoder(samprate=16_000, lm=None, loglevel="FATAL")
    for word, phones in _EXTRA_WORDS.items():
        if decoder.lookup_word(word) is None:
            decoder.add_word(word, phones, True)
    return decoder


def align(text: str, sound: np.ndarray) -> Alignment | None:
    """Align `text` with `sound` (float32 [samples], 16 kHz); None where the aligner finds no path."""
    decoder, pcm = _decoder(), (np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes()
    try:
        decoder.set_align_text(" ".join(words_of(text)))
        _decode(decoder, pcm)
    except (RuntimeError, ValueError):
        return None
    if decoder.hyp() is None:
        return None
    found = [(s.word, s.start_frame / 100, (s.end_frame + 1) / 100) for s in decoder.seg()]
    words = [(re.sub(r"\(\d+\)$", "", w), a, b) for w, a, b in found if not w.startswith("<")]
    if [w for w, _, _ in words] != words_of(text):
        return None
    return Alignment(words, _phones(decoder, pcm) or _evenly(decoder, found))


def _phones(decoder: Decoder, pcm: bytes) -> list[tuple[str, float, float]] | None:
    """Second pass, state by state; pocketsphinx cannot always finish it."""
    try:
        decoder.set_alignment()
        _decode(decoder, pcm)
    except RuntimeError:
        return None
    entries = [p for word in decoder.get_alignment() for p in word]
    return [(p.name if p.name in PHONES else "SIL", p.start / 100, (p.start + p.duration) / 100) for p in entries]


def _evenly(decoder: Decoder, words: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """The dictionary's phonemes spread evenly over each word."""
    phones = []
    for word, start, end in words:
        names = ["SIL"] if word.startswith("<") else (decoder.lookup_word(word) or "SIL").split()
        edges = np.linspace(start, end, len(names) + 1)
        phones += [(n, float(a), float(b)) for n, a, b in zip(names, edges[:-1], edges[1:], strict=True)]
    return phones


def _decode(decoder: Decoder, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
