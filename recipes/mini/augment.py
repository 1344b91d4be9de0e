"""What happens to a voice on its way: another throat, pitch and speed, rooms, telephone bands, level, noise.

Everything takes and gives float32 [samples] at 16 kHz and a `numpy.random.Generator`, and keeps the length
except `resampled`, which shortens by `factor` (times in an alignment shrink with it).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

__all__ = ["formants_moved", "noise", "on_the_way", "resampled"]

SAMPLE_RATE = 16_000
WINDOW, HOP = 512, 128
QUEFRENCIES = 28  # of the cepstrum that are the envelope: below the period of a voice of 500 Hz
MOST_GAIN = 2.5  # natural logarithm; what moves an envelope further is noise between the formants


def resampled(sound: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times faster: pitch, formants and speed change together."""
    positions = np.arange(int(len(sound) / factor)) * factor
    return np.interp(positions, np.arange(len(sound)), sound).astype(np.float32)


def formants_moved(sound: np.ndarray, factor: float) -> np.ndarray:
    """The same words from a throat `factor` times shorter: formants move up by it, pitch and speed stay.

    The envelope of each short-time spectrum, its cepstrum's first coefficients, is stretched along the frequencies
    and the harmonics are left where they are (vocal tract length perturbation, Jaitly and Hinton 2013).
    """
    whole = -(-len(sound) // HOP) * HOP
    padded = np.pad(sound.astype(np.float32), (WINDOW, WINDOW + whole - len(sound)))
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    starts = np.arange(0, len(padded) - WINDOW + 1, HOP)
    spectra = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[starts] * window)
    cepstra = np.fft.irfft(np.log(np.abs(spectra) + 1e-5))
    cepstra[:, QUEFRENCIES + 1 : -QUEFRENCIES] = 0
    envelope = np.fft.rfft(cepstra).real
    position = np.arange(envelope.shape[1]) / factor
    below = np.minimum(position.astype(int), envelope.shape[1] - 2)
    share = np.minimum(position - below, 1.0)
    moved = envelope[:, below] * (1 - share) + envelope[:, below + 1] * share
    spectra *= np.exp(np.clip(moved - envelope, -MOST_GAIN, MOST_GAIN))
    pieces = np.fft.irfft(spectra).astype(np.float32) * window
    out = np.zeros_like(padded)
    for k in range(WINDOW // HOP):  # every fourth window follows on the one before
        part = pieces[k :: WINDOW // HOP].ravel()
        out[k * HOP : k * HOP + len(part)] += part
    return out[WINDOW : WINDOW + len(sound)] / np.float32(1.5)  # squared windows add up to 1.5


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
    white = rng.standard_normal(samples, dtype=np.float32)
    tilt = rng.uniform(0.0, 0.98)
    shaped = _filtered(white, lambda z: 1 / (1 - tilt * z))
    rms = np.sqrt(np.mean(shaped**2) + 1e-12)
    return (shaped * (10 ** (level_dbfs / 20) / rms)).astype(np.float32)


def _filtered(sound: np.ndarray, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`sound` through the filter whose response is a function of one sample's delay, exp(-i w)."""
    size = 1 << (len(sound) + 4800 - 1).bit_length()  # 0.3 s for the tail, so that it does not come round to the start
    spectrum = np.fft.rfft(sound, size) * response(_delay(size))
    return np.fft.irfft(spectrum, size)[: len(sound)].astype(np.float32)


@lru_cache(maxsize=4)
def _delay(size: int) -> np.ndarray:
    return np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size).astype(np.complex64)


def _room(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    length = int(rng.uniform(0.05, 0.3) * SAMPLE_RATE)
    decay = np.exp(-6.9 * np.arange(length) / length)
    response = rng.standard_normal(length) * decay * rng.uniform(0.01, 0.06)
    response[0] = 1.0
    size = 1 << (len(sound) + length - 1).bit_length()
    spectrum = np.fft.rfft(sound, size) * np.fft.rfft(response.astype(np.float32), size)
    return np.fft.irfft(spectrum, size)[: len(sound)].astype(np.float32)


def _coloured(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gentle random tilt and one broad resonance, as microphones have."""
    tilt = rng.uniform(-0.4, 0.4)
    centre, radius = rng.uniform(200, 6000), rng.uniform(0.3, 0.7)
    angle = 2 * np.pi * centre / SAMPLE_RATE
    gain = rng.uniform(0.0, 0.6)

    def response(z: np.ndarray) -> np.ndarray:
        resonance = (1 - radius) / (1 - 2 * radius * np.cos(angle) * z + radius**2 * z**2)
        return (1 + tilt * z) * (1 + gain * resonance)

    return _filtered(sound, response)


def _band_limited(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two poles on each side, without phase."""
    high, low = rng.uniform(3200, 7600), rng.uniform(50, 300)

    def response(z: np.ndarray) -> np.ndarray:
        hertz = np.linspace(1e-3, SAMPLE_RATE / 2, len(z))
        return (1 / np.sqrt((1 + (low / hertz) ** 4) * (1 + (hertz / high) ** 4))).astype(np.float32)

    return _filtered(sound, response)
