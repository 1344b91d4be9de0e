"""The loudspeakers' side of a call: what has arrived is played, and what was played is known.

`play` is for the event loop; the sound card's thread calls `wanted`. It knows the jitter buffer, no network.
Shapes: float32 [samples] at 24 kHz.
"""

import threading
from collections.abc import Callable
from typing import Final

import numpy as np

from client.jitter import JitterBuffer
from client.levels import dbfs
from client.sound import SAMPLE_RATE_HZ, Pcm

__all__ = ["Speaker"]

_AHEAD: Final = SAMPLE_RATE_HZ // 25
"""Played sound that may wait for the microphone's of the same time, 40 ms: a card asks for some blocks in advance.
More would hand the echo canceller what was played too late, and an echo never comes before its sound."""
_LONGEST: Final = SAMPLE_RATE_HZ
"""And when no microphone asks."""


class Speaker:
    """What plays. `on_played` is called in the card's thread with every block, and must not block."""

    def __init__(self, jitter: JitterBuffer, *, on_played: Callable[[Pcm], None] = lambda _: None) -> None:
        self.jitter = jitter
        self.level_dbfs = dbfs(np.zeros(0, np.float32))
        """Of the block that was played last."""
        self._on_played = on_played
        self._lock = threading.Lock()
        self._reference: Pcm = np.zeros(0, np.float32)

    def wanted(self, count: int) -> Pcm:
        """Give the card what it is to play."""
        pcm = self.jitter.take(count)
        self.level_dbfs = dbfs(pcm)
        with self._lock:
            self._reference = np.concatenate((self._reference, pcm))[-_LONGEST:]
        self._on_played(pcm)
        return pcm

    def reference(self, count: int) -> Pcm:
        """Give what was played while the microphone heard its next `count` samples; silence where nothing was."""
        with self._lock:
            waiting = self._reference[-(count + _AHEAD) :]
            given, self._reference = waiting[:count], waiting[count:]
        return np.pad(given, (0, count - len(given)))
