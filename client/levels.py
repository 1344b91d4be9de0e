"""Loudness of a block, for meters. It knows samples and decibels."""

from typing import Final

import numpy as np

from client.sound import Pcm

__all__ = ["SILENT_DBFS", "dbfs"]

SILENT_DBFS: Final = -90.0
"""The level of silence, and of less than 16 bits can say."""


def dbfs(pcm: Pcm) -> float:
    """RMS of float32 [samples] against full scale, in decibels, at least SILENT_DBFS."""
    if not len(pcm):
        return SILENT_DBFS
    return max(SILENT_DBFS, 10 * float(np.log10(np.square(pcm, dtype=np.float64).mean() + 1e-12)))
