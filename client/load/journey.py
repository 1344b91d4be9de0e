"""Every frame's journey in one call: when it was due, when it was sent, when its reply was there, and why late.

**Model and server.** Moshi answers frame n of the caller with its own frame n - D, so reply n exists when the caller's
frame n + D is complete; D is the model's delay and no fault of the server's (D = 1: the 160 ms of a frame and its
delay). The *delay* of a reply, here, is what the server and the network add to that: from the sending of frame n + D,
complete, to the reading of reply n, complete. D is not configured but seen: a call whose every frame was answered
leaves D of them unanswered for ever, and no reply can come before what it answers.

**Client and server.** A frame that this program sent late, or a reply that it read late, is not the server's doing.
Both times are known (see `clock`) and taken off before a frame is called late.

**Players.** A strict player begins `jitter_s` after the first reply and never slips: a reply that comes after its
moment is *late*. A patient player waits instead when it runs empty, and is that much behind from then on: the
replies it waited for are *starved*. Lost frames leave gaps in both.

Times are seconds of the monotonic clock. Nothing here knows sockets.
"""

from array import array
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from client.sound import FRAME_S

__all__ = ["Answers", "Journey", "Seconds", "Starvation", "model_delay", "starvation"]

_USUAL_DELAY: Final = 1
_LONGEST_DELAY: Final = 4
"""Dialogue models have 1 or 2; who is further behind is a server that cannot keep up."""
_NOTHING_S: Final = 1e-6
Seconds = npt.NDArray[np.float64]
"""float64 [n]."""


class Journey:
    """What is written down during a call, and nothing computed: a few numbers a frame."""

    def __init__(self) -> None:
        self.due = array("d")
        self.sent = array("d")
        self.read = array("d")
        self.read_late = array("d")
        self._place = array("l")
        self.lost = 0
        """Frames that the server said it dropped or skipped."""
        self.answered_all = False
        """Whether the caller waited at the end until nothing more came, and the call was not broken off."""

    def send(self, due: float, now: float) -> None:
        """Note a frame that is about to be sent."""
        self.due.append(due)
        self.sent.append(now)

    def hear(self, frames: int, now: float, late_s: float) -> None:
        """Note replies that were read at once, possibly `late_s` after they could have been."""
        for _ in range(frames):
            self._place.append(len(self.read) + self.lost)
            self.read.append(now)
            self.read_late.append(late_s)

    @property
    def unanswered(self) -> int:
        """Frames sent, for which neither a reply nor a word of its loss has come."""
        return len(self.sent) - len(self.read) - self.lost

    def answers(self, delay: int) -> "Answers":
        """Pair every reply with the frame whose completion it needed, `delay` after its own."""
        place = np.frombuffer(self._place, np.dtype("l")) if self._place else np.zeros(0, np.dtype("l"))
        place = place[place + delay < len(self.sent)]
        count, frame = len(place), place + delay
        due, sent = (np.array(times, np.float64)[frame] for times in (self.due, self.sent))
        read, read_late = (np.array(times, np.float64)[:count] for times in (self.read, self.read_late))
        return Answers(place=place, sent=sent, read=read, send_late=sent - due, read_late=read_late)

    def smallest_gap(self) -> int:
        """The least that any reply was behind the frames sent by then; at least the model's delay."""
        if not self.read:
            return _USUAL_DELAY
        sent_by_then = np.searchsorted(np.array(self.sent), np.array(self.read), side="right")
        return int((sent_by_then - 1 - np.array(self._place)).min())


class Answers(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The replies of one call, in order; all arrays are `[replies]`, times float64 in seconds."""

    place: npt.NDArray[np.int_]
    """Which frame of the model it is, counting those that were lost."""
    sent: Seconds
    """When the frame that it needed was sent."""
    read: Seconds
    send_late: Seconds
    read_late: Seconds

    @property
    def delay(self) -> Seconds:
        """Seconds from the frame's sending to the reply's reading: server, network, and this program's reading."""
        return self.read - self.sent

    @property
    def own_delay(self) -> Seconds:
        """Seconds without this program's reading: the least that the server and the network can have taken."""
        return np.maximum(0.0, self.delay - self.read_late)

    def late(self, jitter_s: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Say which replies are late for a strict player, and which of them only because of this program."""
        if not len(self.read):
            return np.zeros(0, np.bool_), np.zeros(0, np.bool_)
        needed = self.read[0] + jitter_s + (self.place - self.place[0]) * FRAME_S
        came_late = self.read > needed
        without_us = self.read - self.read_late - np.maximum(0.0, self.send_late)
        return came_late & (without_us > needed), came_late & (without_us <= needed)


class Starvation(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and how long, a patient player ran empty."""

    frames: int
    seconds: float


def starvation(answers: Answers, jitter_s: float) -> Starvation:
    """Let a patient player play the replies of a call, this program's lateness taken off."""
    came = answers.read - answers.read_late - np.maximum(0.0, answers.send_late)
    frames, seconds, needed, last = 0, 0.0, None, 0
    for moment, place in zip(came.tolist(), answers.place.tolist(), strict=True):
        needed = moment + jitter_s if needed is None else needed + (place - last) * FRAME_S
        if moment > needed + _NOTHING_S:
            frames, seconds, needed = frames + 1, seconds + moment - needed, moment
        last = place
    return Starvation(frames=frames, seconds=seconds)


def model_delay(journeys: Sequence[Journey]) -> int:
    """How many frames the model's replies are behind by nature, as these calls show; 1 when none shows it."""
    heard = [journey for journey in journeys if journey.read]
    seen = [journey.smallest_gap() for journey in heard]
    seen += [journey.unanswered for journey in heard if journey.answered_all]
    least = min(seen, default=_USUAL_DELAY)
    return max(0, least) if least <= _LONGEST_DELAY else _USUAL_DELAY
