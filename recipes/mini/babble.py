"""Speech that asks nothing: pieces of a voice's own sentences, cut between phonemes and joined at random.

People say more to a machine than it was made for, in words that no synthesis of its domain holds. Pieces of two to six
phonemes in any order sound like sentences of the same voice in another language; some begin as a question does.
"""

from __future__ import annotations

import numpy as np

from recipes.mini import faults, wordings
from recipes.mini.bank import Utterance, sound_of
from recipes.mini.codec import SAMPLE_RATE
from recipes.mini.script import STRANGE

__all__ = ["TEXT", "babble"]

TEXT = "Babble."
LENGTH_S = (0.4, 4.0)
PIECE_PHONES = (2, 6)
OPENS = 0.25  # share that begins with the first words of a sentence
FADE = 80  # samples, 5 ms
WORD_PIECES = 2  # pieces that make a word: between words a caller may hesitate


def babble(
    spoken: list[Utterance], pcm: np.ndarray, rng: np.random.Generator, *, count: int, name: str
) -> tuple[list[Utterance], np.ndarray]:
    """`count` utterances of a voice `name`, from those `spoken` by one, and their sound, int16 [S].

    None where every sentence spoken is too short.
    """
    made: list[Utterance] = []
    sounds = [np.zeros(0, np.int16)]
    offset = 0
    sources = [u for u in spoken if len(u.phones) > PIECE_PHONES[1] and not faults.stays_silent(u.text)]
    for _ in range(count if sources else 0):
        sound, words = _sentence(sources, pcm, rng)
        sounds.append((sound * 32767).astype(np.int16))
        about = {"voice": name, "text": TEXT, "kind": STRANGE, "reply": wordings.UNKNOWN, "category": STRANGE}
        made.append(Utterance(**about, offset=offset, samples=len(sound), words=tuple(words), phones=()))
        offset += len(sound)
    return made, np.concatenate(sounds)


def _sentence(
    sources: list[Utterance], pcm: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """float32 [S] and its words, which have no names; seconds."""
    sound = np.zeros(0, np.float32)
    words: list[tuple[str, float, float]] = []
    if rng.random() < OPENS:
        sound, words = _opening(sources[rng.integers(len(sources))], pcm, rng)
    wanted = len(sound) + rng.uniform(*LENGTH_S) * SAMPLE_RATE
    while len(sound) < wanted:
        start_s = len(sound) / SAMPLE_RATE
        for _ in range(WORD_PIECES):
            sound = _joined(sound, _piece(sources[rng.integers(len(sources))], pcm, rng))
        words.append(("", start_s, len(sound) / SAMPLE_RATE))
    return sound, words


def _opening(
    source: Utterance, pcm: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """The first words of a sentence, all but the last at most; their names stand for what is heard."""
    count = int(rng.integers(1, max(2, len(source.words))))
    words = list(source.words[:count])
    return sound_of(source, pcm)[: int(words[-1][2] * SAMPLE_RATE)], words


def _piece(source: Utterance, pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(PIECE_PHONES[0], PIECE_PHONES[1] + 1))
    first = int(rng.integers(len(source.phones) - count + 1))
    start_s, end_s = source.phones[first][1], source.phones[first + count - 1][2]
    return sound_of(source, pcm)[int(start_s * SAMPLE_RATE) : int(end_s * SAMPLE_RATE)]


def _joined(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """One after the other, faded over into each other."""
    fade = min(FADE, len(before), len(after))
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    between = before[len(before) - fade :] * (1 - ramp) + after[:fade] * ramp
    return np.concatenate([before[: len(before) - fade], between, after[fade:]])
