"""What happens to a voice on its way: pitch and speed, rooms, telephone bands, level, noise.

Everything takes and gives float32 [samples] at 16 kHz and a `numpy.random.Generator`, and keeps the length
except `resampled`, which shortens by `factor` (times in an alignment shrink with it).
"""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, fftconvolve, lfilter

__all__ = ["noise", "on_the_way", "resampled"]

SAMPLE_RATE = 16_000


def resampled(sound: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times faster: pitch, formants and speed change together."""
    positions = np.arange(int(len(sound) / factor)) * factor
    return np.interp(positions, np.arange(len(sound)), sound).astype(np.float32)


def on_the_way(sound: np.ndarray, rng: np.random.Generator, *, strength: float = 1.0) -> np.ndarray:
    """A random room, colouring, band limit and level; each happens with a probability scaled by `strength`."""
    if rng.random() < 0.35 * strength:
        sound = _room(sound, rng)
    if rng.random() < 0.6 * strength:
        sound = _coloured(sound, rng)
    if rng.random() < 0.25 * strength:
        sound = _band_limited(sound, rng)
    level = 10 ** (rng.uniform(-10, 5) * strength / 20)
    return np.clip(sound * level, -1, 1).astype(np.float32)


def noise(samples: int, rng: np.random.Generator, *, level_dbfs: float) -> np.ndarray:
    """Stationary noise between white and brown at `level_dbfs` RMS."""
    white = rng.standard_normal(samples).astype(np.float32)
    tilt = rng.uniform(0.0, 0.98)
    shaped = lfilter([1.0], [1.0, -tilt], white)
    rms = np.sqrt(np.mean(shaped**2) + 1e-12)
    return (shaped * (10 ** (level_dbfs / 20) / rms)).astype(np.float32)


def _room(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    length = int(rng.uniform(0.05, 0.3) * SAMPLE_RATE)
    decay = np.exp(-6.9 * np.arange(length) / length)
    response = rng.standard_normal(length) * decay * rng.uniform(0.01, 0.06)
    response[0] = 1.0
    return fftconvolve(sound, response)[: len(sound)].astype(np.float32)


def _coloured(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gentle random tilt and one broad resonance, as microphones have."""
    tilt = rng.uniform(-0.4, 0.4)
    sound = lfilter([1.0, tilt], [1.0], sound)
    centre, radius = rng.uniform(200, 6000), rng.uniform(0.3, 0.7)
    angle = 2 * np.pi * centre / SAMPLE_RATE
    gain = rng.uniform(0.0, 0.6)
    resonance = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], sound)
    return (sound + gain * resonance).astype(np.float32)


def _band_limited(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    high = rng.uniform(3200, 7600)
    low = rng.uniform(50, 300)
    b, a = butter(2, [low, high], "bandpass", fs=SAMPLE_RATE)
    return lfilter(b, a, sound).astype(np.float32)
