"""Sounds that tests can find again: tones, bursts, and a noise whose place is known to the sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

Samples = NDArray[np.float32]


def tone(length: int, *, rate: int = 24000, hz: float = 440.0, level: float = 0.3) -> Samples:
    return (level * np.sin(2 * np.pi * hz * np.arange(length) / rate)).astype(np.float32)


def bursts(
    length_s: float, spans: Sequence[tuple[float, float]], *, level: float = 0.2, noise: float = 0.0, seed: int = 0
) -> Samples:
    """Noise bursts in `spans` (seconds) over a noise floor, 24 kHz."""
    random = np.random.default_rng(seed)
    sound = noise * random.standard_normal(round(length_s * 24000))
    for start_s, end_s in spans:
        first, last = round(start_s * 24000), round(end_s * 24000)
        sound[first:last] += level * random.standard_normal(last - first)
    return sound.astype(np.float32)


def speechlike(length: int, *, seed: int = 0) -> Samples:
    """Noise below 4 kHz, which survives Opus well enough to be found again by correlation."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum[np.fft.rfftfreq(length, 1 / 24000) > 4000] = 0
    sound = np.fft.irfft(spectrum, length)
    return np.asarray(0.1 * sound / sound.std(), np.float32)


def lag_of(later: Samples, earlier: Samples) -> int:
    """By how many samples `later` comes after `earlier`, at the maximum of their correlation."""
    size = len(later) + len(earlier)
    product = np.fft.rfft(later, size) * np.conj(np.fft.rfft(earlier, size))
    best = int(np.argmax(np.fft.irfft(product, size)))
    return best if best < len(later) else best - size


def write_wav(path: Path, sound: Samples, *, rate: int = 24000) -> Path:
    soundfile.write(path, sound, rate, subtype="FLOAT")
    return path
