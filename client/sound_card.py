"""What `duologue talk` needs of a sound card, and a sound card made of files.

A card runs in threads of its own. It hands over blocks of the microphone and asks for blocks to play; neither function
may block. Shapes: a block is float32 [samples] in -1..1, mono, 24 kHz, whatever the device's own rate.
`client.devices` has the real cards.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from client.sound import SAMPLE_RATE_HZ, Pcm, WavWriter, read_frames

__all__ = ["BLOCK", "BLOCK_S", "FileCard", "Heard", "SoundCard", "Wanted"]

BLOCK: Final = 480
"""Samples that a card hands over or asks for at once: 20 ms, four to a frame."""
BLOCK_S: Final = BLOCK / SAMPLE_RATE_HZ

Heard = Callable[[Pcm], None]
"""Takes a block of the microphone, float32 [samples]."""
Wanted = Callable[[int], Pcm]
"""Gives so many samples to play, float32 [samples]."""

_LATE_S: Final = 0.2
"""A file card that is later than this skips the time it missed, as a real one loses what nobody fetched."""


class SoundCard(Protocol):
    """A microphone and loudspeakers. May be opened again after it was closed."""

    @property
    def name(self) -> str:
        """What is heard and what is played on, for people."""

    @property
    def problem(self) -> str:
        """Why it has stopped, as a sentence; empty while it runs."""

    @property
    def output_s(self) -> float:
        """Seconds from the moment a block is asked for until it sounds."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come: never for a microphone, at its end for a file."""

    def open(self, heard: Heard, wanted: Wanted) -> None:
        """Start. Raises `client.errors.DeviceError`. Blocks for as long as the system needs."""

    def close(self) -> None:
        """Stop; after it neither function is called again."""


class FileCard:
    """A microphone that is a sound file, with silence after it, and loudspeakers that are a WAV file.

    Both run on a real clock, `speed` times as fast. The output begins at the microphone's first sample, and a block
    sounds one block after it was asked for, as with a card that plays one while it fetches the next: a place in the one
    file and a place in the other are as far apart as the two sounds were in the room.
    """

    def __init__(
        self, microphone: Path | None, loudspeakers: Path | None = None, *, speed: float = 1.0, tail_s: float = 5.0
    ) -> None:
        """`over` comes `tail_s` after the file's end. Raises SoundFileError for a file that cannot be opened."""
        self._names = [str(path) if path else "silence" for path in (microphone, loudspeakers)]
        self._frames = read_frames(microphone, tail_s=tail_s) if microphone else itertools.repeat(_silence(BLOCK))
        self._blocks = _blocks(self._frames)
        self._writer = WavWriter(loudspeakers) if loudspeakers else None
        self._period_s = BLOCK_S / speed
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._problem = ""
        self._over = False
        self._coming = deque([_silence(BLOCK)] * 2)
        """What sounds now, and what comes after it."""

    @property
    def name(self) -> str:
        """The files' names."""
        return " and ".join(self._names)

    @property
    def problem(self) -> str:
        """What went wrong in its thread."""
        return self._problem

    @property
    def output_s(self) -> float:
        """One block."""
        return BLOCK_S

    @property
    def over(self) -> bool:
        """Whether file and tail are through."""
        return self._over

    def open(self, heard: Heard, wanted: Wanted) -> None:
        """Start the clock."""
        self._problem = ""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(heard, wanted), name="duologue-file-card", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the clock. What was played stays in the file, which `finish` completes."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Complete the WAV file. The card cannot be opened again."""
        self.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def unplug(self, problem: str) -> None:
        """Stop as a device does whose cable was pulled."""
        self.close()
        self._problem = problem

    def _run(self, heard: Heard, wanted: Wanted) -> None:
        due = time.monotonic() + self._period_s
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            heard(self._hear())
            self._play(wanted(BLOCK))
            due += self._period_s
            if (late_s := time.monotonic() - due) > _LATE_S:
                for _ in range(int(late_s / self._period_s)):
                    self._hear()
                    self._play(_silence(BLOCK))
                    due += self._period_s

    def _hear(self) -> Pcm:
        block = next(self._blocks, None)
        self._over = block is None
        return _silence(BLOCK) if block is None else block

    def _play(self, block: Pcm) -> None:
        """Write what has sounded in the period that is over: a block sounds in the period after the next."""
        self._coming.append(block)
        sounded = self._coming.popleft()
        if self._writer is not None:
            self._writer.write(sounded)


def _blocks(frames: Iterator[Pcm]) -> Iterator[Pcm]:
    for frame in frames:
        yield from frame.reshape(-1, BLOCK)


def _silence(count: int) -> Pcm:
    return np.zeros(count, np.float32)
