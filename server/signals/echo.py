"""Is what a caller sends the model's own voice coming back? Told by the waveform, at an unknown delay and gain.

The caller's latest 0.32 s are laid over the model's sound of the last seconds at every delay at once; both are first
whitened, so that two voices do not agree merely because both are voices. The squared
correlations near the best delay add up to the share of the caller's sound that the model's voice explains: near 0 for
a person, for echo what noise and codecs have left of it. It knows nothing of voice activity or turns.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["EchoGuard"]

Pcm = NDArray[np.float32]

_RATE_HZ: Final = 8_000
_DOWN: Final = 2
"""From the 16 kHz that are given to the 8 kHz that are compared."""
_WINDOW: Final = round(0.32 * _RATE_HZ)
_BEFORE: Final = round(0.002 * _RATE_HZ)
_AFTER: Final = round(0.008 * _RATE_HZ)
"""Round the best delay: the room's first reflections count as well."""
_SAID_BINS: Final = 12
_HEARD_BINS: Final = 100
"""Smoothing of the spectra that whiten, of 0.49 Hz each: fine for seconds of sound, coarse for a third of one."""
_LEAST_SHARE: Final = 0.02
_TINY: Final = 1e-20
_FLOOR: Final = 0.003
"""Of the mean power: bands where the model has next to nothing are not blown up."""
_SILENT: Final = 1e-9
_BLOCK: Final = round(0.02 * _RATE_HZ)
_BELOW_LOUDEST: Final = 10**-2.5


class EchoGuard:
    """The last seconds of one call, both sides."""

    def __init__(self, *, reach_s: float) -> None:
        self._reach = round(reach_s * _RATE_HZ)
        self._said = np.zeros(self._reach + _WINDOW, np.float32)
        self._heard = np.zeros(_WINDOW, np.float32)
        # Of the correlation only delays without wrapping are looked at, so the longer side alone must fit.
        self._size = 1 << (len(self._said) - 1).bit_length()

    def feed(self, heard: Pcm, said: Pcm) -> None:
        """Note one frame of both sides, float32 at 16 kHz, of the same length and time."""
        self._heard = _shifted(self._heard, _halved(heard))
        self._said = _shifted(self._said, _halved(said))

    @property
    def sounding_s(self) -> float:
        """How much of the caller's last 0.32 s is sound, within 25 dB of its loudest 20 ms. Little says little."""
        power = np.square(self._heard[: _WINDOW // _BLOCK * _BLOCK].reshape(-1, _BLOCK)).mean(axis=1)
        return float((power > _BELOW_LOUDEST * power.max() + _SILENT).sum() * _BLOCK / _RATE_HZ)

    def share(self) -> float:
        """Share of the caller's last 0.32 s that the model's voice explains, 0 to 1. About a millisecond of work."""
        if np.square(self._said).mean() < _SILENT or np.square(self._heard).mean() < _SILENT:
            return 0.0
        said, heard = (np.fft.rfft(side, self._size) for side in (self._said, self._heard))
        whiten = 1 / np.sqrt(_envelope(said, _SAID_BINS) * _envelope(heard, _HEARD_BINS))
        whiten = whiten.astype(np.float32)  # half the work, and all the precision that sound has
        products = np.fft.irfft(said * np.conj(heard) * whiten, self._size)[: self._reach + 1]
        said_power = np.square(np.fft.irfft(said * np.sqrt(whiten), self._size)[: len(self._said)])
        heard_energy = float(np.square(np.fft.irfft(heard * np.sqrt(whiten), self._size)).sum())
        running = np.concatenate([[0.0], np.cumsum(said_power)])
        said_energy = running[_WINDOW : _WINDOW + self._reach + 1] - running[: self._reach + 1]
        # A delay at which the model was silent explains nothing, however well a few samples fit.
        said_energy = np.maximum(said_energy, _LEAST_SHARE * said_energy.max())
        shares = np.square(products) / (said_energy * heard_energy + _TINY)
        best = int(shares.argmax())
        # A longer delay is a smaller index: reflections come before the peak in `shares`.
        near = shares[max(0, best - _AFTER) : best + _BEFORE + 1]
        by_chance = 2 * float(np.median(shares)) * len(near)
        return float(min(1.0, max(0.0, near.sum() - by_chance)))


def _shifted(past: Pcm, new: Pcm) -> Pcm:
    """Drop the oldest samples for the new ones."""
    return np.concatenate([past[len(new) :], new])


def _halved(pcm: Pcm) -> Pcm:
    """Every second sample, after a short low pass; both sides get the same."""
    padded = np.concatenate([pcm[:1], pcm])
    halved: Pcm = (0.5 * (padded[0:-1:_DOWN] + padded[1::_DOWN])).astype(np.float32)
    return halved


def _envelope(spectrum: NDArray[np.complex128], bins: int) -> NDArray[np.float64]:
    """Power of a spectrum, smoothed over `bins` to both sides."""
    power = np.square(np.abs(spectrum))
    running = np.concatenate([[0.0], np.cumsum(np.pad(power, bins, mode="edge"))])
    smooth: NDArray[np.float64] = (running[2 * bins :] - running[: -2 * bins])[: len(power)] / (2 * bins)
    smooth += _FLOOR * smooth.mean()
    return smooth
