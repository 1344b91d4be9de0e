"""The two bounded boxes of a caller: whole frames on their way in, replies on their way out; and a bound on decoding.

The event loop fills the inbox and the tick thread empties it; the outbox lives on the event loop alone. Neither
ever makes anybody wait: what does not fit is thrown away and counted.
"""

import asyncio
import threading
from collections import deque
from typing import Final

import msgspec

from server.sound import Frame

__all__ = ["DueFrame", "HeardFrame", "Inbox", "Outbox", "Reply", "Throttle"]

_BURST_FRAMES: Final = 4.0
_MOST_PIECES: Final = 4096
_BURST_DECODED: Final = 100.0
_DECODED_PER_SERVED: Final = 4.0
_FRAME_BYTES: Final = 4096
"""Bytes that cost about as much as a frame, whatever they decode to: pages may be empty."""


class HeardFrame(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A whole frame of the caller's sound. `at` is when it was complete, in monotonic seconds."""

    pcm: Frame
    at: float


class DueFrame(HeardFrame, frozen=True, kw_only=True, eq=False):
    """A frame that the model takes now. It could not be taken before `due_at`, in monotonic seconds.

    That is when it was complete, its caller's pace allowed it, and the frame before it had been taken: what a frame
    waits after that, it waits for the server and not for its caller.
    """

    due_at: float


class Reply(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the model answered to one frame. Times are monotonic seconds."""

    sound: tuple[bytes, ...] = ()
    """Opus packets; none while nothing is out yet, and after the sound was dropped."""
    token: int
    heard_at: float
    """When the caller's frame was complete."""
    due_at: float
    """When it could have been taken: see `DueFrame`."""
    began_at: float
    stepped_at: float
    """When the engine's step began, and when it was done."""
    encode_s: float = 0.0
    """Its share, in seconds, of making Opus of a step's replies."""


class Throttle:
    """How fast a caller's sound is decoded, which is the event loop's work, and so everybody's.

    It may be `_DECODED_PER_SERVED` times what the caller is served (the surplus is skipped), after 8 s of sound at
    once, as after a stall of the network. Who sends more is read more slowly: TCP makes it wait.
    """

    def __init__(self, *, max_speed: float, frame_s: float) -> None:
        self._rate_hz = _DECODED_PER_SERVED * max_speed / frame_s
        self._allowed = _BURST_DECODED
        self._allowed_at = 0.0

    def spend(self, frames: int, size: int, now: float) -> float:
        """Note that so many frames, or `size` bytes, were decoded. Returns seconds to wait before the next."""
        self._allowed = min(_BURST_DECODED, self._allowed + (now - self._allowed_at) * self._rate_hz)
        self._allowed -= frames + size / _FRAME_BYTES
        self._allowed_at = now
        return max(0.0, -self._allowed / self._rate_hz)


class Inbox:
    """Frames that wait for the model, at most `limit`.

    A full box is emptied down to its newest quarter, so that a caller far behind is near the present again. The
    pace is a token bucket: `max_speed` frames per frame's time, and a burst of four.
    """

    def __init__(self, *, limit: int, max_speed: float, frame_s: float) -> None:
        self._limit = limit
        self._rate_hz = max_speed / frame_s
        self._frames: deque[HeardFrame] = deque()
        self._lock = threading.Lock()
        self._allowed = _BURST_FRAMES
        self._allowed_at = 0.0
        self._next_at = 0.0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: HeardFrame) -> int:
        """Add a frame. Returns how many older ones were skipped for it."""
        with self._lock:
            self._frames.append(frame)
            if len(self._frames) <= self._limit:
                return 0
            surplus = len(self._frames) - max(1, self._limit // 4)
            for _ in range(surplus):
                self._frames.popleft()
            self.skipped += surplus
            return surplus

    def take(self, now: float) -> DueFrame | None:
        """Give the oldest frame, or None when there is none or the caller has used up its pace."""
        if not self._frames:  # every slot is asked in every step
            return None
        with self._lock:
            if self._wait(now) != 0.0:
                return None
            frame = self._frames.popleft()
            due_at = max(frame.at, self._next_at)
            self._allowed -= 1.0
            self._next_at = now + max(0.0, (1.0 - self._allowed) / self._rate_hz)
            return DueFrame(pcm=frame.pcm, at=frame.at, due_at=due_at)

    def wait_s(self, now: float) -> float | None:
        """Seconds until a frame may be taken: 0 for at once, None for not before another is put."""
        with self._lock:
            return self._wait(now)

    def _wait(self, now: float) -> float | None:
        if not self._frames:
            return None
        self._allowed = min(_BURST_FRAMES, self._allowed + (now - self._allowed_at) * self._rate_hz)
        self._allowed_at = now
        return max(0.0, (1.0 - self._allowed) / self._rate_hz)


class Outbox:
    """Replies that wait for the socket, with sound for at most `limit` of them.

    When there is more, the oldest sound is dropped and its text stays. Text alone is bounded, too.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._replies: deque[Reply] = deque()
        self._sounding = 0
        self._mute = 0
        """So many of the oldest replies surely have no sound: those need not be looked at again."""
        self._changed = asyncio.Event()
        self.dropped = 0

    def __len__(self) -> int:
        return self._sounding

    def put(self, reply: Reply) -> int:
        """Add a reply. Returns how many older ones lost their sound for it."""
        self._replies.append(reply)
        self._sounding += bool(reply.sound)
        lost = 0
        if self._sounding > self._limit:
            self._mute_oldest()
            lost = 1
        if len(self._replies) > _MOST_PIECES:
            self._pop()
        self.dropped += lost
        self._changed.set()
        return lost

    def mute(self) -> int:
        """Drop the sound of all that waits; the text stays. Returns how many replies lost it."""
        lost = self._sounding
        self._replies = deque(msgspec.structs.replace(reply, sound=()) for reply in self._replies)
        self._sounding, self._mute = 0, len(self._replies)
        self.dropped += lost
        return lost

    async def get(self, timeout_s: float) -> Reply | None:
        """Wait for the oldest reply; None after `timeout_s` without one."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._replies:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
        return self._pop()

    def _pop(self) -> Reply:
        reply = self._replies.popleft()
        self._mute = max(0, self._mute - 1)
        self._sounding -= bool(reply.sound)
        return reply

    def _mute_oldest(self) -> None:
        while not self._replies[self._mute].sound:
            self._mute += 1
        self._replies[self._mute] = msgspec.structs.replace(self._replies[self._mute], sound=())
        self._sounding -= 1
