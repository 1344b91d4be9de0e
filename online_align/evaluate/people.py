"""The recorded people of `online_align/speech`: what each says, when every word stands, and what is right to answer.

Half of them the embedded model was trained on, half it never heard. It owns reading and laying sound on the frame grid;
it knows no model.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

__all__ = ["FRAME", "FRAME_S", "RATE_HZ", "Utterance", "lay", "people"]

RATE_HZ: Final = 16_000
FRAME: Final = 1280
FRAME_S: Final = 0.08

Pcm = NDArray[np.float32]

_FOLDER: Final = Path(__file__).parents[1] / "speech"
_ROOM_DBFS: Final = -70.0


class Utterance(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that one person says. A line of `index.json`."""

    file: str
    start_s: float
    seconds: float
    voice: str
    group: Literal["trained", "heldout"]
    """Whether the embedded model was trained on this voice."""
    wording: Literal["trained", "heldout", "item"]
    """Whether it was trained on these words; `item`: on no wording of this sum."""
    category: str
    text: str
    expected: str
    """The right answer; empty for a hum."""
    fault: Literal["stays_silent", "says_wrong", "talks_on"] | None
    """The fault of `recipes/mini/faults.toml` that it runs into."""
    wrong: str | None
    """What the faulty model answers."""
    words: tuple[tuple[str, float, float], ...]
    """Each word and its seconds from and to, counted from the beginning of the utterance."""

    @property
    def end_s(self) -> float:
        """When the last word ends."""
        return self.words[-1][2] if self.words else self.seconds

    def sound(self) -> Pcm:
        """float32 `[samples]` at 16 kHz."""
        first = round(self.start_s * RATE_HZ)
        return _file(self.file)[first : first + round(self.seconds * RATE_HZ)]


@cache
def people() -> tuple[Utterance, ...]:
    """Everything that is recorded."""
    return tuple(msgspec.json.decode((_FOLDER / "index.json").read_bytes(), type=list[Utterance]))


@cache
def _file(name: str) -> Pcm:
    pcm, rate = soundfile.read(_FOLDER / name, dtype="float32")
    assert rate == RATE_HZ, f"{name} is at {rate} Hz"
    return np.asarray(pcm, np.float32)


def lay(pieces: Sequence[tuple[float, Pcm]], seconds: float, rng: np.random.Generator) -> Pcm:
    """Put sounds at their seconds into a quiet room: float32 `[frames, 1280]` at 16 kHz. What does not fit is cut."""
    frames = int(seconds / FRAME_S)
    level = 10 ** (_ROOM_DBFS / 20)
    sound = rng.standard_normal(frames * FRAME).astype(np.float32) * np.float32(level)
    for at_s, piece in pieces:
        at = round(at_s * RATE_HZ)
        sound[at : at + len(piece)] += piece[: max(0, len(sound) - at)]
    return sound.reshape(frames, FRAME)
