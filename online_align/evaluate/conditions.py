"""What lies between a voice and the server: noise, echo of the model, somebody else in the room, and Opus.

Takes the user's track of a scene and makes of it what a microphone would send. Levels are RMS over speech against full
scale; clips stand at about -23 dBFS.
"""

import io
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from online_align.evaluate.material import RATE_HZ, Clip
from online_align.evaluate.scenes import Scene

__all__ = ["Condition", "microphone"]

Pcm = NDArray[np.float32]

_SPEECH_DBFS: Final = -23.0
_ROOM_S: Final = 0.12
_DECAY_S: Final = 0.02
_TAIL: Final = 0.12
_DISTANT_DB: Final = -20.0


class Condition(StrEnum):
    """How a scene is heard. All but `CLEAN` count as noisy in the report."""

    CLEAN = "clean"
    NOISE_20 = "noise_20"
    """Pink noise 20 dB below the speech."""
    NOISE_10 = "noise_10"
    ECHO_20 = "echo_20"
    """The model's voice comes back 20 dB quieter, 0.1 to 0.6 s late, through a room and two times Opus."""
    ECHO_30 = "echo_30"
    DISTANT = "distant"
    """Somebody else speaks all the time, 20 dB quieter and through a room."""


def microphone(scene: Scene, condition: Condition, others: Sequence[Clip], *, seed: int) -> Pcm:
    """Give the user's side as it arrives, float32 at 16 kHz, after Opus in every condition."""
    rng = np.random.default_rng([seed, len(scene.user), list(Condition).index(condition)])
    heard = scene.user.astype(np.float64)
    if condition in {Condition.NOISE_20, Condition.NOISE_10}:
        heard += _pink(len(heard), rng) * _gain(_SPEECH_DBFS - float(condition.removeprefix("noise_")))
    elif condition in {Condition.ECHO_20, Condition.ECHO_30}:
        heard += _echo(scene.model, rng) * _gain(-float(condition.removeprefix("echo_")))
    elif condition is Condition.DISTANT:
        heard += _talk(others, len(heard), rng) * _gain(_DISTANT_DB)
    return _through_opus(heard.astype(np.float32))


def _gain(db: float) -> float:
    return float(10 ** (db / 20))


def _pink(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise: NDArray[np.float64] = np.fft.irfft(spectrum, samples)
    noise /= noise.std()
    return noise


def _echo(model: Pcm, rng: np.random.Generator) -> NDArray[np.float64]:
    late = round(rng.uniform(0.1, 0.6) * RATE_HZ)
    back = np.concatenate([np.zeros(late), _in_room(_through_opus(model), rng)])
    return back[: len(model)]


def _talk(others: Sequence[Clip], samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    talk = np.zeros(0, np.float32)
    while len(talk) < samples:
        clip = others[int(rng.integers(len(others)))]
        talk = np.concatenate([talk, clip.pcm, np.zeros(round(rng.uniform(0.3, 1.2) * RATE_HZ), np.float32)])
    return _in_room(talk[:samples], rng)


def _in_room(pcm: Pcm, rng: np.random.Generator) -> NDArray[np.float64]:
    """Direct sound and decaying reflections, at the power it had."""
    size = round(_ROOM_S * RATE_HZ)
    response = _TAIL * rng.standard_normal(size) * np.exp(-np.arange(size) / (_DECAY_S * RATE_HZ))
    response[0] = 1.0
    length = len(pcm) + size
    wet: NDArray[np.float64] = np.fft.irfft(np.fft.rfft(pcm, length) * np.fft.rfft(response, length), length)
    wet = wet[: len(pcm)]
    wet *= np.sqrt(np.square(pcm).sum() / max(np.square(wet).sum(), 1e-12))
    return wet


def _through_opus(pcm: Pcm) -> Pcm:
    file = io.BytesIO()
    soundfile.write(file, pcm, RATE_HZ, format="OGG", subtype="OPUS")
    file.seek(0)
    back, _ = soundfile.read(file, dtype="float32")
    out: Pcm = np.zeros(len(pcm), np.float32)
    out[: min(len(back), len(pcm))] = back[: len(pcm)]
    return out
