"""`--record`: both sides of a call as they were in the room, in one WAV file: the user left, the model right.

Left is what was sent, right is what the loudspeakers played, gaps included: a place in the file is a moment of the
call. It knows blocks and a file. Shapes: float32 [samples] at 24 kHz.
"""

import threading
from pathlib import Path
from typing import Final

import numpy as np

from client.sound import SAMPLE_RATE_HZ, CallWriter, Closing, Pcm

__all__ = ["LiveRecording"]

_APART: Final = SAMPLE_RATE_HZ
"""A side that is so far behind has stopped, as a microphone does that was unplugged: silence takes its place."""


class LiveRecording(Closing):
    """Writes as the call goes on. Without a path it does nothing. `said` and `played` may come from two threads."""

    def __init__(self, path: Path | None) -> None:
        """Raises SoundFileError when the file cannot be written."""
        self._writer = CallWriter(path) if path else None
        self._lock = threading.Lock()
        self._ahead = 0
        """By how many samples the user's side is longer."""

    def said(self, pcm: Pcm) -> None:
        """Append to the user's side."""
        with self._lock:
            if self._writer is not None:
                self._writer.user(pcm)
                self._ahead += len(pcm)
                if self._ahead > _APART:
                    self._writer.model(np.zeros(self._ahead, np.float32))
                    self._ahead = 0

    def played(self, pcm: Pcm) -> None:
        """Append to the model's side."""
        with self._lock:
            if self._writer is not None:
                self._writer.model(pcm)
                self._ahead -= len(pcm)
                if self._ahead < -_APART:
                    self._writer.user(np.zeros(-self._ahead, np.float32))
                    self._ahead = 0

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
