"""The demo's callers: recorded people who ask, some of whom stop in the middle of the question, as people do.

What each says and when every word stands is in `index.json` beside the recordings, which ship with `online_align`. This
file lays a question, with a pause in it or without, on the frame grid, and knows no socket.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import soundfile
import soxr

from client.errors import SoundFileError
from client.sound import FRAME_SIZE, SAMPLE_RATE_HZ, Pcm

__all__ = ["PEOPLE", "Asking", "hesitations", "load_people", "plain_questions"]

PEOPLE: Final = Path(__file__).parent.parent / "online_align" / "speech"

_SHORT: Final = ("sums", "capitals")
_BEFORE: Final = ("of", "plus")
_NO_QUESTION: Final = ("hum", "tellings")
_HEAD_S: Final = 0.56
_TAIL_S: Final = 3.6
_ROOM: Final = 3e-4


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the index: a stretch of a file, seconds, and its words."""

    file: str
    start_s: float
    seconds: float
    voice: str
    group: str
    wording: str
    category: str
    text: str
    expected: str
    fault: str | None
    words: tuple[tuple[str, float, float], ...]


class Asking(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One question as somebody asks it, perhaps with a pause in it. Times are seconds of the call."""

    text: str
    expected: str
    voice: str
    pause_at_s: float | None
    end_s: float
    """When the caller has asked everything."""
    sound: Pcm
    """float32 `[samples]` at 24 kHz, whole frames."""

    def frames(self) -> Iterator[Pcm]:
        """The call, a frame at a time."""
        return (self.sound[at : at + FRAME_SIZE] for at in range(0, len(self.sound), FRAME_SIZE))


def load_people(folder: Path = PEOPLE) -> list[Said]:
    """Everything that is recorded. Raises SoundFileError."""
    try:
        return msgspec.json.decode((folder / "index.json").read_bytes(), type=list[Said])
    except (OSError, msgspec.DecodeError) as problem:
        raise SoundFileError(f"Cannot read the people in {folder}/index.json ({problem}).") from problem


def hesitations(said: Sequence[Said], count: int, *, pause_s: float, seed: int, folder: Path = PEOPLE) -> list[Asking]:
    """`count` short questions by different people in turn, each with a pause before the word that matters."""
    rng = np.random.default_rng(seed)
    fitting = [each for each in said if each.category in _SHORT and each.fault is None and _place(each)]
    return [_laid(each, _place(each), pause_s, rng, folder) for each in _in_turn(fitting, count, rng)]


def plain_questions(said: Sequence[Said], count: int, *, seed: int, folder: Path = PEOPLE) -> list[Asking]:
    """`count` questions of every sort by different people in turn, asked without a stop."""
    rng = np.random.default_rng(seed)
    fitting = [each for each in said if each.category not in _NO_QUESTION and each.fault is None]
    return [_laid(each, 0, 0.0, rng, folder) for each in _in_turn(fitting, count, rng)]


def _in_turn(said: Sequence[Said], count: int, rng: np.random.Generator) -> list[Said]:
    """Somebody of every voice, then the next of every voice, in a random order of what each said."""
    by_voice = {voice: [e for e in said if e.voice == voice] for voice in sorted({e.voice for e in said})}
    queues = [[theirs[i] for i in rng.permutation(len(theirs))] for theirs in by_voice.values()]
    picked = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return picked[:count]


def _place(said: Said) -> int:
    """The word after "of" or "plus", where people think and the shipped model jumps in; 0: there is none."""
    return next((i for i, before in enumerate(said.words[:-1], 1) if before[0].lower() in _BEFORE), 0)


def _laid(said: Said, word: int, pause_s: float, rng: np.random.Generator, folder: Path) -> Asking:
    """Somebody stops for `pause_s` before a word; word 0: not at all."""
    sound = _sound(said, folder)
    cut_s, end_s = said.words[word][1], said.words[-1][2]
    cut, rest_s = round(cut_s * SAMPLE_RATE_HZ), _HEAD_S + cut_s + pause_s
    length_s = rest_s + said.seconds - cut_s + _TAIL_S
    whole = (_ROOM * rng.standard_normal(int(length_s / 0.08) * FRAME_SIZE)).astype(np.float32)
    for at_s, piece in ((_HEAD_S, sound[:cut]), (rest_s, sound[cut:])):
        at = round(at_s * SAMPLE_RATE_HZ)
        whole[at : at + len(piece)] += piece[: len(whole) - at]
    return Asking(
        text=said.text,
        expected=said.expected,
        voice=said.voice,
        pause_at_s=_HEAD_S + cut_s if word else None,
        end_s=rest_s + end_s - cut_s,
        sound=whole,
    )


def _sound(said: Said, folder: Path) -> Pcm:
    try:
        with soundfile.SoundFile(folder / said.file) as file:
            file.seek(round(said.start_s * file.samplerate))
            pcm = file.read(round(said.seconds * file.samplerate), dtype="float32")
            rate = file.samplerate
    except (OSError, soundfile.SoundFileError) as problem:
        raise SoundFileError(f"Cannot read {folder / said.file} ({problem}).") from problem
    return np.asarray(soxr.resample(pcm, rate, SAMPLE_RATE_HZ), np.float32)
