"""The microphone's side of a call: blocks of the sound card become frames, without echo, at a frame's pace.

The card's thread calls `heard`; everything else lives on the event loop. A call needs a frame every 80 ms, or the
model stands still: when the card gives none, silence takes its place. What nobody fetches is dropped, oldest first.
Shapes: float32 [samples] at 24 kHz, a frame is [FRAME_SIZE].
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from client.echo import EchoCanceller
from client.levels import SILENT_DBFS, dbfs
from client.sound import FRAME_S, FRAME_SIZE, Pcm

__all__ = ["Microphone"]

_MOST_WAITING: Final = 5
"""Frames: what a caller said 400 ms ago, and what nobody could send since, is no longer worth sending."""
_PATIENCE_S: Final = 0.3
"""A card that has given nothing for so long has stopped."""


class Microphone:
    """Frames of one call's user. Made on the event loop."""

    def __init__(
        self,
        echo: EchoCanceller,
        reference: Callable[[int], Pcm],
        *,
        on_frame: Callable[[Pcm], None] = lambda _: None,
        frame_s: float = FRAME_S,
    ) -> None:
        """`on_frame` is told what is sent.

        `reference(count)` gives what was played with the next `count` samples. It is asked in the card's thread, so
        that the two stay together however late the event loop is.
        `frame_s` is how long a frame lasts here: less for a card that runs faster than real time.
        """
        self.muted = False
        self.level_dbfs = SILENT_DBFS
        """Of the latest frame, as the microphone heard it, muted or not."""
        self.dropped = 0
        """Frames that nobody fetched."""
        self._echo = echo
        self._reference = reference
        self._on_frame = on_frame
        self._frame_s = frame_s
        self._loop = asyncio.get_running_loop()
        self._near: Pcm = np.zeros(0, np.float32)
        self._far: Pcm = np.zeros(0, np.float32)
        self._frames: deque[tuple[float, Pcm]] = deque()
        self._arrived = asyncio.Event()
        self._heard_at = time.monotonic()

    def heard(self, block: Pcm) -> None:
        """Take a block from the card's thread, any size."""
        at = time.monotonic()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._gather, block, self._reference(len(block)), at)

    async def next_frame(self) -> tuple[float, Pcm]:
        """Wait for the next frame; gives when it was complete, in monotonic seconds, and float32 [FRAME_SIZE]."""
        while not self._frames:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(self._loop.time() + self._silent_in_s()):
                    await self._arrived.wait()
            except TimeoutError:
                self._stand_in()
        return self._frames.popleft()

    def forget(self) -> None:
        """Drop what waits: it was said before the call, or while there was none."""
        self._frames.clear()

    def _silent_in_s(self) -> float:
        return max(0.0, self._heard_at + _PATIENCE_S + self._frame_s - time.monotonic())

    def _stand_in(self) -> None:
        """Put silence where the card gives nothing, once for every frame that is missing."""
        now = time.monotonic()
        self._heard_at = max(self._heard_at + self._frame_s, now - _PATIENCE_S - self._frame_s)
        self.level_dbfs = SILENT_DBFS
        self._add(now, np.zeros(FRAME_SIZE, np.float32))

    def _gather(self, near: Pcm, far: Pcm, at: float) -> None:
        self._heard_at = max(self._heard_at, at)
        self._near = np.concatenate((self._near, near))
        self._far = np.concatenate((self._far, far))
        while len(self._near) >= FRAME_SIZE:
            near, self._near = self._near[:FRAME_SIZE], self._near[FRAME_SIZE:]
            far, self._far = self._far[:FRAME_SIZE], self._far[FRAME_SIZE:]
            self.level_dbfs = dbfs(near)
            clean = self._echo.process(near, far)
            self._add(at, np.zeros_like(clean) if self.muted else clean)

    def _add(self, at: float, frame: Pcm) -> None:
        self._on_frame(frame)
        self._frames.append((at, frame))
        if len(self._frames) > _MOST_WAITING:
            self._frames.popleft()
            self.dropped += 1
        self._arrived.set()
