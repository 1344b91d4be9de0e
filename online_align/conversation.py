"""One call as two people would tell it: who spoke when, in which frames, and with which words.

It owns the shapes and the clock that joins the journal's columns with the seconds of signals. It knows no model, no
recogniser and no rule.
"""

import math
from collections.abc import Sequence

import msgspec

from server.signals import Signal

__all__ = ["Conversation", "FrameClock", "Turn", "Word"]


class FrameClock(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a call, as signals count them, and the journal's columns.

    Signals count steps. A column's user tokens are heard in the step after it, and its model sound is out
    `late_frames` steps after it, the longest delay of the model's codebooks.
    """

    frame_s: float
    late_frames: int = 1

    def heard_s(self, column: int) -> float:
        """When the caller's sound of a column begins."""
        return (column + 1) * self.frame_s

    def said_s(self, column: int) -> float:
        """When the model's sound of a column begins."""
        return (column + self.late_frames) * self.frame_s

    def heard_at(self, seconds: float) -> int:
        """Column in which the caller makes the sound of this moment; -1 before the first."""
        return math.floor(seconds / self.frame_s + 1e-6) - 1

    def said_at(self, seconds: float) -> int:
        """Column in which the model makes the sound of this moment; negative before the first."""
        return math.floor(seconds / self.frame_s + 1e-6) - self.late_frames

    def after_heard(self, seconds: float) -> int:
        """First column that the caller, who ends at this moment, has no sound in."""
        return math.ceil(seconds / self.frame_s - 1e-6) - 1


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """A word and its seconds of the call."""

    text: str
    t0: float
    t1: float


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of one side: from its first to its last sound, or word. Times are seconds of the call."""

    t0: float
    t1: float
    first: int
    """Its first column."""
    last: int
    """Its last one."""
    text: str = ""
    """What is said: the model's by its text stream, the caller's by a recogniser; empty where there was none."""
    words: tuple[Word, ...] = ()
    heard: str = ""
    """The model's as a recogniser hears it, where one was asked."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one call."""

    session: str
    clock: FrameClock
    columns: int
    """How many there are."""
    signals: Sequence[Signal]
    user: Sequence[Turn] = ()
    model: Sequence[Turn] = ()
    hung_up: bool = False

    @property
    def end_s(self) -> float:
        """Where what is known of it ends."""
        return self.clock.heard_s(self.columns)

    def next_user(self, after_s: float) -> Turn | None:
        """The caller's first turn that begins after this moment."""
        return next((turn for turn in self.user if turn.t0 > after_s), None)

    def reply_before(self, t_s: float) -> Turn | None:
        """The model's latest turn that has begun by this moment."""
        return next((turn for turn in reversed(self.model) if turn.t0 <= t_s), None)

    def asked_before(self, t_s: float) -> Turn | None:
        """The caller's latest turn that has begun by this moment."""
        return next((turn for turn in reversed(self.user) if turn.t0 < t_s), None)
