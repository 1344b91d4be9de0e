"""Sound for the tests of signals: clips at 16 kHz."""

from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

SPEECH = Path(__file__).parents[1] / "assets" / "speech"


@cache
def clip(name: str) -> np.ndarray:
    """A clip of the speech assets, float32 at 16 kHz."""
    pcm, rate = soundfile.read(SPEECH / name, dtype="float32")
    return np.asarray(pcm if rate == 16_000 else soxr.resample(pcm, rate, 16_000), np.float32)
