"""Labelled scenes: two tracks of sound put together so that what happens, and when, is known exactly.

Every scene is written out by hand as what the two do and which signals that must give; none of the detector's rules are
used. It knows nothing of how signals are found.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_align.evaluate.material import RATE_HZ, Clip, Material
from server.signals import SignalKind

__all__ = ["Label", "Scene", "make_scenes"]

Pcm = NDArray[np.float32]

_TAIL_S: Final = 3.4
_FADE: Final = RATE_HZ // 200
_SCRIPTS: "Final[list[Callable[[Stage], None]]]" = []


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What must be found. `t0` as in the signal; `latency_s` where the kind has one."""

    kind: SignalKind
    t0: float
    latency_s: float | None = None


class Scene(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Two tracks at 16 kHz, the times of the model's words, and what must be found."""

    name: str
    user: Pcm
    model: Pcm
    words_s: tuple[float, ...]
    labels: tuple[Label, ...]
    hangs_up: bool = False


class Stage:
    """A scene in the making. Times are seconds from its beginning."""

    def __init__(self, material: Material, rng: np.random.Generator) -> None:
        self.rng = rng
        self._material = material
        self._sides: dict[str, list[tuple[float, Pcm]]] = {"user": [], "model": []}
        self._words: list[float] = []
        self.labels: list[Label] = []
        self.end = 0.0
        self.hangs_up = False

    def question(self, *, at_least_s: float = 0.8) -> Clip:
        """A sentence that somebody asks."""
        return self._any([clip for clip in self._material.questions if clip.seconds >= at_least_s])

    def interruption(self) -> Clip:
        """A sentence to cut in with."""
        return self._any(self._material.interruptions)

    def backchannel(self) -> Clip:
        """A short sound."""
        return self._any(self._material.backchannels)

    def reply(self) -> Clip:
        """One to three seconds of the model."""
        return self._any([clip for clip in self._material.replies if clip.seconds < 3])

    def telling(self) -> Clip:
        """Seven seconds and more of the model, with its own rests."""
        return self._any([clip for clip in self._material.replies if clip.seconds >= 5])

    def uniform(self, low: float, high: float) -> float:
        """A time drawn evenly."""
        return float(self.rng.uniform(low, high))

    def user(self, at: float, clip: Clip) -> float:
        """Let the user speak. Returns when he ends."""
        return self._put("user", at, clip)

    def model(self, at: float, clip: Clip, *, until: float | None = None) -> float:
        """Let the model speak, to the end or until it breaks off. Returns the end of its last sound."""
        cut = clip if until is None else msgspec.structs.replace(clip, pcm=_broken_off(clip.pcm, until - at))
        self._words += [at + t for t in clip.words_s if until is None or at + t < until]
        self._put("model", at, cut)
        return at + len(_trimmed(cut.pcm)) / RATE_HZ

    def label(self, kind: SignalKind, t0: float, latency_s: float | None = None) -> None:
        """Say what must be found."""
        self.labels.append(Label(kind=kind, t0=t0, latency_s=latency_s))

    def response(self, asked: float, answered: float) -> None:
        """Label a response."""
        self.label(SignalKind.RESPONSE, min(asked, answered), answered - asked)

    def finished(self, name: str) -> Scene:
        """Put the tracks together."""
        length_s = self.end if self.hangs_up else self.end + _TAIL_S
        samples = round(length_s * RATE_HZ)
        user, model = (_track(self._sides[side], samples) for side in ("user", "model"))
        return Scene(
            name=name,
            user=user,
            model=model,
            words_s=tuple(sorted(self._words)),
            labels=tuple(self.labels),
            hangs_up=self.hangs_up,
        )

    def _any(self, clips: list[Clip]) -> Clip:
        return clips[int(self.rng.integers(len(clips)))]

    def _put(self, side: str, at: float, clip: Clip) -> float:
        self._sides[side].append((at, clip.pcm))
        ends = at + clip.seconds
        self.end = max(self.end, ends)
        return ends


def make_scenes(material: Material, *, seed: int, rounds: int) -> list[Scene]:
    """Play every script `rounds` times with other people, sentences and times."""
    scenes = []
    for number in range(rounds):
        for index, script in enumerate(_SCRIPTS):
            stage = Stage(material, np.random.default_rng([seed, number, index]))
            script(stage)
            scenes.append(stage.finished(script.__name__.removeprefix("_")))
    return scenes


def _script(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
    _SCRIPTS.append(play)
    return play


@_script
def _question_and_answer(stage: Stage) -> None:
    at = 1.0
    for _ in range(2):
        asked = stage.user(at, stage.question())
        answered = asked + stage.uniform(0.15, 1.2)
        at = stage.model(answered, stage.reply()) + stage.uniform(1.2, 2.0)
        stage.response(asked, answered)


@_script
def _answer_a_little_early(stage: Stage) -> None:
    question = stage.question(at_least_s=1.2)
    asked = 1.0 + question.seconds
    stage.user(1.0, question)
    answered = asked - stage.uniform(0.15, 0.35)
    stage.model(answered, stage.reply())
    stage.response(asked, answered)


@_script
def _interrupted_and_yields(stage: Stage) -> None:
    begins = stage.uniform(2.0, 3.5)
    yields = begins + stage.uniform(0.2, 1.1)
    yields = stage.model(0.8, stage.telling().without_rests(), until=yields)
    asked = stage.user(begins, stage.interruption())
    stage.label(SignalKind.BARGE_IN, begins)
    stage.label(SignalKind.YIELD, begins, yields - begins)
    answered = asked + stage.uniform(0.2, 0.8)
    stage.model(answered, stage.reply())
    stage.response(asked, answered)


@_script
def _interrupted_and_talks_on(stage: Stage) -> None:
    begins = stage.uniform(1.5, 2.5)
    telling = stage.telling().without_rests()
    stage.user(begins, stage.interruption())
    stage.model(0.8, telling)
    stage.label(SignalKind.BARGE_IN, begins)
    stage.label(SignalKind.NO_YIELD, begins)


@_script
def _backchannels(stage: Stage) -> None:
    telling = stage.telling()
    stage.model(0.8, telling)
    for at in (stage.uniform(1.6, 2.6), stage.uniform(4.6, 5.6)):
        # Where the model sounds, not in one of its rests: somebody who speaks into a silence speaks over nobody.
        over = _sounding(telling, at - 0.8) + 0.8
        stage.user(over, stage.backchannel())
        stage.label(SignalKind.BACKCHANNEL, over)


@_script
def _cut_off(stage: Stage) -> None:
    question = stage.question(at_least_s=1.7)
    asked = stage.user(1.0, question)
    starts = 1.0 + _in_speech(question, (stage.uniform(0.75, 1.3) for _ in range(50)))
    stage.model(starts, stage.reply())
    stage.label(SignalKind.CUT_OFF, starts, starts - asked)


@_script
def _pause_taken(stage: Stage) -> None:
    first, second = _halves(stage.question(at_least_s=1.5))
    paused = stage.user(1.0, first)
    goes_on = paused + stage.uniform(0.75, 1.1)
    ended = stage.user(goes_on, second)
    starts = paused + stage.uniform(0.25, 0.5)
    stage.model(starts, stage.reply())
    stage.label(SignalKind.PAUSE_TAKEOVER, starts, starts - ended)


@_script
def _pause_left_alone(stage: Stage) -> None:
    first, second = _halves(stage.question(at_least_s=1.5))
    asked = stage.user(stage.user(1.0, first) + stage.uniform(0.6, 1.1), second)
    answered = asked + stage.uniform(0.2, 0.7)
    stage.model(answered, stage.reply())
    stage.response(asked, answered)


@_script
def _no_answer(stage: Stage) -> None:
    asked = stage.user(1.0, stage.question())
    stage.label(SignalKind.NO_RESPONSE, asked)
    asked = stage.user(asked + stage.uniform(3.2, 4.0), stage.question())
    answered = asked + stage.uniform(0.3, 0.8)
    stage.model(answered, stage.reply())
    stage.response(asked, answered)


@_script
def _monologue(stage: Stage) -> None:
    asked = stage.user(1.0, stage.question())
    begins = at = asked + 0.4
    while at - begins < 21.0:
        at = stage.model(at, stage.telling()) + stage.uniform(0.3, 0.7)
    stage.response(asked, begins)
    stage.label(SignalKind.MONOLOGUE, begins)


@_script
def _hangs_up(stage: Stage) -> None:
    asked = stage.user(1.0, stage.question())
    answered = asked + 0.5
    leaves = answered + stage.uniform(1.8, 3.0)
    stage.model(answered, stage.telling().without_rests(), until=leaves)
    stage.hangs_up = True
    stage.response(asked, answered)
    stage.label(SignalKind.HANG_UP, leaves)


@_script
def _listens(stage: Stage) -> None:
    """The user says nothing at all: there is nothing to find."""
    stage.model(0.8, stage.telling())


def _track(pieces: list[tuple[float, Pcm]], samples: int) -> Pcm:
    track = np.zeros(samples, np.float32)
    for at, pcm in pieces:
        start = round(at * RATE_HZ)
        piece = pcm[: max(0, samples - start)]
        track[start : start + len(piece)] += piece
    return track


def _broken_off(pcm: Pcm, seconds: float) -> Pcm:
    """Cut with a fade of 5 ms."""
    kept = pcm[: round(seconds * RATE_HZ)].copy()
    kept[-_FADE:] *= np.linspace(1, 0, _FADE, dtype=np.float32)
    return kept


def _halves(clip: Clip) -> tuple[Clip, Clip]:
    """Part a sentence at the quietest 30 ms of its middle third."""
    size = round(0.03 * RATE_HZ)
    starts = range(len(clip.pcm) // 3, 2 * len(clip.pcm) // 3, size // 3)
    at = min(starts, key=lambda start: float(np.square(clip.pcm[start : start + size]).sum())) + size // 2
    first, second = clip.pcm[:at].copy(), clip.pcm[at:].copy()
    first[-_FADE:] *= np.linspace(1, 0, _FADE, dtype=np.float32)
    second[:_FADE] *= np.linspace(0, 1, _FADE, dtype=np.float32)
    return tuple(  # type: ignore[return-value]
        msgspec.structs.replace(clip, pcm=half) for half in (_trimmed(first), _trimmed(second))
    )


def _trimmed(pcm: Pcm) -> Pcm:
    loud = np.flatnonzero(np.abs(pcm) > np.abs(pcm).max() * 0.02)
    return pcm[loud[0] : loud[-1] + 1]


def _sounding(clip: Clip, at: float) -> float:
    """The first time from `at` on from which the clip sounds for half a second."""
    for start in _steps(at, clip.seconds - 1.0):
        piece = clip.pcm[round((start - 0.3) * RATE_HZ) : round((start + 0.4) * RATE_HZ)]
        blocks = np.square(piece[: len(piece) // 1600 * 1600].reshape(-1, 1600)).mean(axis=1)
        if blocks.min() > 1e-4 * np.square(clip.pcm).max():
            return start
    return at


def _in_speech(clip: Clip, before_end_s: Iterable[float]) -> float:
    """The first of the times around which the clip sounds: who begins in a rest takes a pause instead."""
    times = [clip.seconds - each for each in before_end_s]
    for start in times:
        piece = clip.pcm[round((start - 0.15) * RATE_HZ) : round((start + 0.15) * RATE_HZ)]
        blocks = np.square(piece[: len(piece) // 800 * 800].reshape(-1, 800)).mean(axis=1)
        if blocks.min() > 1e-4 * np.square(clip.pcm).max():
            return start
    return times[0]


def _steps(low: float, high: float) -> Iterator[float]:
    while low < high:
        yield low
        low += 0.05
