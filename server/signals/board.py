"""Signals of all calls at once: one row each, voices found for all rows together.

Owns each row's detector and brings both sides to 16 kHz. One thread at a time may call it; about 0.3 ms of work for a
row in which both speak.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.signals.detector import CallDetector, HeardAndSaid
from server.signals.kinds import Signal
from server.signals.thresholds import DEFAULT, Thresholds
from server.signals.vad import SAMPLE_RATE_HZ, Vad, load_vad
from server.sound import Resampler

__all__ = ["Board", "RowFrame"]

Pcm = NDArray[np.float32]


class RowFrame(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One frame of a row at the engine's rate, float32 `[frame_size]`."""

    heard: Pcm
    said: Pcm | None
    """None while the model has nothing out."""
    word: bool
    """A word of the model's text begins in it."""


class Board:
    """As many rows as the engine has slots."""

    def __init__(
        self, rows: int, *, sample_rate: int, frame_s: float, thresholds: Thresholds = DEFAULT, vad: Vad | None = None
    ) -> None:
        self._vad = vad or load_vad(rows, gate_dbfs=thresholds.gate_dbfs)
        self._sample_rate = sample_rate
        self._frame_s = frame_s
        self._thresholds = thresholds
        self._calls: dict[int, CallDetector] = {}
        self._ears: dict[int, tuple[Resampler, Resampler]] = {}

    def open(self, row: int) -> CallDetector:
        """Start a call in a row. Returns its detector, for what the client reports."""
        self._vad.open(row)
        if self._sample_rate != SAMPLE_RATE_HZ:
            both = (self._sample_rate, SAMPLE_RATE_HZ)
            self._ears[row] = Resampler(*both), Resampler(*both)
        self._calls[row] = CallDetector(frame_s=self._frame_s, vad=self._vad.name, thresholds=self._thresholds)
        return self._calls[row]

    def hear(self, frames: Mapping[int, RowFrame]) -> dict[int, list[Signal]]:
        """Take the frames of one tick. Returns each row's new and revised signals."""
        both = {row: self._at_rate(row, frame) for row, frame in frames.items()}
        hops = self._vad.hear({row: each.heard for row, each in both.items()})
        return {row: self._calls[row].frame(each, hops[row]) for row, each in both.items()}

    def close(self, row: int, *, hung_up: bool) -> list[Signal]:
        """End a row's call. Returns what was still open."""
        self._ears.pop(row, None)
        return self._calls.pop(row).close(hung_up=hung_up)

    def _at_rate(self, row: int, frame: RowFrame) -> HeardAndSaid:
        said = np.zeros_like(frame.heard) if frame.said is None else frame.said
        if row not in self._ears:
            return HeardAndSaid(heard=frame.heard, said=said, word=frame.word)
        heard_at, said_at = self._ears[row]
        return HeardAndSaid(heard=heard_at(frame.heard), said=said_at(said), word=frame.word)
