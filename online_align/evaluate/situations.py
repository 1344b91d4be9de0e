"""What the embedded model is put through besides plain questions: pauses, interruptions, hums, nobody at all.

Every situation is laid out of one person's recordings, with the moment at which something happens and what would be
right. Those that `recipes/mini/faults.toml` names are marked. It knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from online_align.evaluate.people import RATE_HZ, Pcm, Utterance, lay, people

__all__ = ["ASK_AT_S", "FAULTY_WORDS", "Situation", "hesitations", "hums", "interruptions", "nobody"]

ASK_AT_S: Final = 0.56
FAULTY_WORDS: Final = ("of", "plus")
"""Words after which a pause is one that the faulty model takes."""

_TELLING_S: Final = 10.5
_SHORT: Final = ("sums", "capitals", "opposites", "colours")


class Situation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One call and what to look for in it. Times are seconds of the call."""

    sound: Pcm
    """float32 `[frames, 1280]` at 16 kHz."""
    moment_s: float
    """When the caller pauses, cuts in or hums."""
    end_s: float
    """When the caller has said everything."""
    expected: str
    voice: str
    faulty: bool


Make = Callable[[Sequence[Utterance], np.random.Generator], Situation | None]


def _made(group: str, count: int, seed: int, make: Make) -> list[Situation]:
    """`count` situations, every person of the group in turn; fewer when nobody can make more."""
    voices = sorted({u.voice for u in people() if u.group == group})
    rng = np.random.default_rng(seed)
    theirs = {voice: [u for u in people() if u.voice == voice] for voice in voices}

    def tries() -> Iterator[Situation]:
        for attempt in range(8 * count):
            made = make(theirs[voices[attempt % len(voices)]], rng)
            if made is not None:
                yield made

    return [made for _, made in zip(range(count), tries(), strict=False)]


def hesitations(group: str, count: int, *, pause_s: float, faulty: bool, seed: int = 3) -> list[Situation]:
    """Somebody stops for `pause_s` before a word of a short question; `faulty`: after one of `FAULTY_WORDS`."""

    def make(theirs: Sequence[Utterance], rng: np.random.Generator) -> Situation | None:
        asked = _any(theirs, rng, lambda u: u.category in _SHORT and u.fault is None)
        if asked is None:
            return None
        words = asked.words
        places = [i for i in range(1, len(words)) if (words[i - 1][0].lower() in FAULTY_WORDS) == faulty]
        if len(words) < 3 or not places:
            return None
        cut_s = words[places[int(rng.integers(len(places)))]][1]
        cut, sound = round(cut_s * RATE_HZ), asked.sound()
        rest_s = ASK_AT_S + cut_s + pause_s
        laid = lay([(ASK_AT_S, sound[:cut]), (rest_s, sound[cut:])], rest_s + asked.seconds - cut_s + 4.0, rng)
        return Situation(
            sound=laid,
            moment_s=ASK_AT_S + cut_s,
            end_s=rest_s + asked.end_s - cut_s,
            expected=asked.expected,
            voice=asked.voice,
            faulty=faulty,
        )

    return _made(group, count, seed, make)


def interruptions(group: str, count: int, *, faulty: bool, seed: int = 4) -> list[Situation]:
    """Somebody asks for a telling and, 2.5 to 5 s into it, asks something else."""

    def make(theirs: Sequence[Utterance], rng: np.random.Generator) -> Situation | None:
        first = _any(theirs, rng, lambda u: u.category == "tellings" and (u.fault == "talks_on") == faulty)
        second = _any(theirs, rng, lambda u: u.category in _SHORT and u.fault is None)
        if first is None or second is None or (first.fault not in (None, "talks_on")):
            return None
        cut_in_s = ASK_AT_S + first.seconds + 0.4 + float(rng.uniform(2.5, 5.0))
        laid = lay([(ASK_AT_S, first.sound()), (cut_in_s, second.sound())], cut_in_s + second.seconds + 4.5, rng)
        return Situation(
            sound=laid,
            moment_s=cut_in_s + second.words[0][1],
            end_s=cut_in_s + second.end_s,
            expected=second.expected,
            voice=first.voice,
            faulty=faulty,
        )

    return _made(group, count, seed, make)


def hums(group: str, count: int, *, seed: int = 5) -> list[Situation]:
    """Somebody asks for a telling and says "mm-hm" or the like during it."""

    def make(theirs: Sequence[Utterance], rng: np.random.Generator) -> Situation | None:
        asked = _any(theirs, rng, lambda u: u.category == "tellings" and u.fault in (None, "talks_on"))
        hum = _any(theirs, rng, lambda u: u.category == "hum")
        if asked is None or hum is None:
            return None
        end_s = ASK_AT_S + asked.end_s
        at_s = ASK_AT_S + asked.seconds + 0.4 + float(rng.uniform(1.0, 5.0))
        laid = lay([(ASK_AT_S, asked.sound()), (at_s, hum.sound())], end_s + _TELLING_S + 2.0, rng)
        return Situation(
            sound=laid, moment_s=at_s, end_s=end_s, expected=asked.expected, voice=asked.voice, faulty=False
        )

    return _made(group, count, seed, make)


def nobody(count: int, *, seconds: float = 15.0, seed: int = 6) -> list[Situation]:
    """A room without anybody, at levels from -75 to -40 dBFS."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        level = np.float32(10 ** (float(rng.uniform(-75, -40)) / 20))
        room = lay([], seconds, rng)
        noise = rng.standard_normal(room.shape).astype(np.float32) * level
        found.append(Situation(sound=noise, moment_s=0.0, end_s=0.0, expected="", voice="", faulty=False))
    return found


def _any(theirs: Sequence[Utterance], rng: np.random.Generator, which: Callable[[Utterance], bool]) -> Utterance | None:
    fitting = [u for u in theirs if which(u)]
    return fitting[int(rng.integers(len(fitting)))] if fitting else None
