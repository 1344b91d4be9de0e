"""Sound that labelled scenes are mixed from: people's sentences, short sounds, and replies of the model itself.

All of it is 16 kHz mono and trimmed to where the voice is, so that a scene knows to 10 ms who speaks when. It owns no
opinion of what a scene means.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from server.engine import Engine, SamplingParams

__all__ = ["RATE_HZ", "Clip", "Material", "load_material"]

RATE_HZ: Final = 16_000

Pcm = NDArray[np.float32]

_ASSETS: Final = Path(__file__).parents[2] / "tests" / "assets"
_HOP: Final = RATE_HZ // 100
_BELOW_LOUDEST_DB: Final = 35.0
_BRIDGE_HOPS: Final = 100
_LONGEST_REST_HOPS: Final = 35
_ANSWER_S: Final = 14.0
_MOST_REPLIES: Final = 10


class Clip(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A trimmed stretch of speech. `words_s` are the times of its words, for the model's replies."""

    text: str
    voice: str
    pcm: Pcm
    words_s: tuple[float, ...] = ()

    def without_rests(self) -> "Clip":
        """The same with no silence longer than 0.35 s in it, and without times of words."""
        loud = _loud_hops(self.pcm)
        gaps = np.diff(loud, prepend=loud[0])
        surplus = np.cumsum(np.maximum(gaps - _LONGEST_REST_HOPS, 0))
        kept = np.zeros((int(loud[-1] - surplus[-1]) + 1, _HOP), np.float32)
        kept[loud - surplus] = self.pcm[: len(self.pcm) // _HOP * _HOP].reshape(-1, _HOP)[loud]
        return Clip(text=self.text, voice=self.voice, pcm=kept.reshape(-1))

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / RATE_HZ


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to mix."""

    questions: list[Clip]
    backchannels: list[Clip]
    interruptions: list[Clip]
    replies: list[Clip]


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of an index."""

    file: str
    text: str
    voice: str
    kind: str = "question"
    category: str = ""


def load_material(*, checkpoint: str = "mini", assets: Path = _ASSETS) -> Material:
    """Read the clips and let the model answer some of them: a few seconds of work."""
    lines = _index(assets / "speech")
    questions = [_clip(assets / "speech", line) for line in lines if line.category != "scene"]
    short = [(line.kind, _clip(assets / "short_sounds", line)) for line in _index(assets / "short_sounds")]
    tellings = [clip for line, clip in zip(lines, questions, strict=False) if line.category == "tellings"]
    return Material(
        questions=questions,
        backchannels=[clip for kind, clip in short if kind == "backchannel"],
        interruptions=[clip for kind, clip in short if kind == "interruption"],
        replies=_replies(checkpoint, [*tellings, *questions][:_MOST_REPLIES]),
    )


def _index(folder: Path) -> list[_Line]:
    return msgspec.json.decode((folder / "index.json").read_bytes(), type=list[_Line])


def _clip(folder: Path, line: _Line) -> Clip:
    pcm, rate = soundfile.read(folder / line.file, dtype="float32")
    sound = pcm if rate == RATE_HZ else soxr.resample(pcm, rate, RATE_HZ)
    first, last = _span(sound.astype(np.float32))
    return Clip(text=line.text, voice=line.voice, pcm=sound[first:last].astype(np.float32))


def _span(pcm: Pcm) -> tuple[int, int]:
    """First and last sample of the voice: where it is within 35 dB of its loudest 10 ms."""
    loud = _loud_hops(pcm)
    return int(loud[0]) * _HOP, (int(loud[-1]) + 1) * _HOP


def _loud_hops(pcm: Pcm) -> NDArray[np.int64]:
    power = pcm[: len(pcm) // _HOP * _HOP].reshape(-1, _HOP).var(axis=1)
    return np.flatnonzero(power > power.max() * 10 ** (-_BELOW_LOUDEST_DB / 10)).astype(np.int64)


def _replies(checkpoint: str, questions: Sequence[Clip]) -> list[Clip]:
    """Ask the model, and cut out its first answer to each question."""
    engine = Engine.load(checkpoint, slots=len(questions), device="cpu")
    assert engine.sample_rate == RATE_HZ, "the embedded model speaks at 16 kHz"
    heard = np.zeros((len(questions), round(_ANSWER_S * RATE_HZ)), np.float32)
    for row, question in enumerate(questions):
        heard[row, RATE_HZ : RATE_HZ + len(question.pcm)] = question.pcm
        engine.open(row, SamplingParams(text_temperature=0.0, audio_temperature=0.0), seed=row)
    everyone = np.ones(len(questions), np.bool_)
    said, words = [], []
    for start in range(0, heard.shape[1] - engine.frame_size + 1, engine.frame_size):
        out = engine.step(np.ascontiguousarray(heard[:, start : start + engine.frame_size]), everyone)
        said.append(out.pcm.numpy().copy())
        words.append([_begins_word(engine, token) for token in out.text.tolist()])
    sound, began = np.concatenate(said, axis=1), np.array(words)
    frame_s = engine.frame_size / RATE_HZ
    found = [_answer(clip, sound[row], began[:, row], frame_s) for row, clip in enumerate(questions)]
    return [clip for clip in found if clip is not None]


def _begins_word(engine: Engine, token: int) -> bool:
    silent = (engine.text_padding_id, engine.end_of_text_padding_id)
    return token >= 0 and token not in silent and str(engine.text_tokenizer.id_to_piece(token)).startswith("▁")


def _answer(question: Clip, sound: Pcm, words: NDArray[np.bool_], frame_s: float) -> Clip | None:
    """The first stretch of speech after the question, or None when there is none of a second."""
    after = RATE_HZ + len(question.pcm) // 2
    loud = _loud_hops(sound)
    loud = loud[loud * _HOP >= after]
    breaks = np.flatnonzero(np.diff(loud) > _BRIDGE_HOPS)
    if not len(loud):
        return None
    first, last = int(loud[0]) * _HOP, (int(loud[breaks[0] if len(breaks) else -1]) + 1) * _HOP
    if last - first < RATE_HZ:
        return None
    times = [float(t) * frame_s - first / RATE_HZ for t in np.flatnonzero(words)]
    within = tuple(t for t in times if -0.3 <= t < (last - first) / RATE_HZ)
    return Clip(text="reply to: " + question.text, voice="model", pcm=sound[first:last], words_s=within)
