"""Clicks that can be found again: how much later each is in what the loudspeakers played than at the microphone."""

from pathlib import Path
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

__all__ = ["RATE_HZ", "delays_ms", "write_clicks"]

RATE_HZ: Final = 24_000
_CLICK_S: Final = 0.01
_LEAST_S: Final = 0.1
_MOST_S: Final = 1.4
"""Where a click is looked for, after it was made."""
_EVERY_S: Final = 1.5
_WANDER_S: Final = 0.08
"""Clicks come at other places of a frame, so that no phase is favoured."""
_HEAD_S: Final = 1.0
_LEVEL: Final = 0.4
_SURE: Final = 0.5
"""Of the correlation that a click has with itself, scaled by the loudness found."""

Samples = NDArray[np.float32]


def write_clicks(path: Path, *, seconds: float, seed: int = 0) -> list[int]:
    """Write a sound file of clicks and silence. Returns where they are, in samples of 24 kHz."""
    random = np.random.default_rng(seed)
    count = max(1, int((seconds - _HEAD_S - _MOST_S) / _EVERY_S))
    starts = [round((_HEAD_S + n * _EVERY_S + random.uniform(0, _WANDER_S)) * RATE_HZ) for n in range(count)]
    sound = np.zeros(round(seconds * RATE_HZ), np.float32)
    click = _click()
    for start in starts:
        sound[start : start + len(click)] = click
    soundfile.write(path, sound, RATE_HZ, subtype="FLOAT")
    return starts


def delays_ms(path: Path, starts: list[int]) -> list[float]:
    """Find each click in a recording that begins when the clicks' file did. What is not found is left out."""
    heard, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE_HZ, "the recording is as the card made it"
    click = _click()
    found = (_find(heard, start, click) for start in starts)
    return [1000 * (place - start) / RATE_HZ for place, start in zip(found, starts, strict=True) if place is not None]


def _find(heard: Samples, start: int, click: Samples) -> int | None:
    first, last = start + round(_LEAST_S * RATE_HZ), start + round(_MOST_S * RATE_HZ)
    window = heard[first:last]
    if len(window) < len(click):
        return None
    likeness = np.abs(np.correlate(window, click, "valid"))
    best = int(likeness.argmax())
    piece = window[best : best + len(click)]
    norm = float(np.sqrt(np.square(piece).sum() * np.square(click).sum()))
    return first + best if norm > 0 and likeness[best] > _SURE * norm and np.abs(piece).max() > _LEVEL / 20 else None


def _click() -> Samples:
    """10 ms that sweep from 500 Hz to 3 kHz, which codecs and filters leave recognisable."""
    at = np.arange(round(_CLICK_S * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * (500 * at + (3000 - 500) / (2 * _CLICK_S) * at**2)
    return (_LEVEL * np.hanning(len(at)) * np.sin(phase)).astype(np.float32)
