"""What a signal is: one thing that happened between the two speakers of a call, as a typed message.

A signal is a fact with a time and a confidence. Whether it is a complaint is decided elsewhere, by a versioned rule.
This file knows nothing of sound, callers or storage.
"""

from enum import StrEnum
from typing import Final

import msgspec

__all__ = ["DETECTOR", "Signal", "SignalKind", "State"]

DETECTOR: Final = "duologue-2"
"""Version of the rules and thresholds. Whoever changes what they find changes this."""


class SignalKind(StrEnum):
    """What happened. The thresholds are in `thresholds.Thresholds`."""

    BARGE_IN = "barge_in"
    """The user starts while the model speaks, and goes on."""
    BACKCHANNEL = "backchannel"
    """A short sound of the user while the model speaks ("mm-hm"); the model may go on."""
    YIELD = "yield"
    """The model stops after a barge-in. `latency_s` runs from the user's start to the model's end, signed."""
    NO_YIELD = "no_yield"
    """The model still talks some time after a barge-in."""
    CUT_OFF = "cut_off"
    """The model starts while the user speaks, and the user goes on. `latency_s` is minus the time that was left."""
    PAUSE_TAKEOVER = "pause_takeover"
    """The model takes the turn in a pause of the user, who then goes on."""
    RESPONSE = "response"
    """The model takes the turn after the user. `latency_s` runs from the user's end to the model's start, signed."""
    NO_RESPONSE = "no_response"
    """The user has ended and the model stays silent."""
    REPEAT = "repeat"
    """The user says nearly the same again. Needs a transcriber, so it is never found online."""
    MONOLOGUE = "monologue"
    """The model talks for long without the user."""
    HANG_UP = "hang_up"
    """The user closes the call cleanly while the model speaks."""
    FEEDBACK = "feedback"
    """The user says explicitly what he thinks: `value` is "up" or "down"."""


class State(StrEnum):
    """How sure a signal is to stay as it is."""

    PROVISIONAL = "provisional"
    """It may still change its kind, its end or its confidence, or be withdrawn, under the same id."""
    FINAL = "final"
    WITHDRAWN = "withdrawn"
    """It was announced and turned out not to be so."""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """One signal, or a revision of it. Times are seconds from the call's first frame."""

    id: int
    """Counts from 1 in each call. Every revision has the id of what it revises."""
    kind: SignalKind
    t0: float
    t1: float
    """Where it ends so far; equal to `t0` for what has no length."""
    confidence: float
    """0 to 1."""
    state: State = State.FINAL
    revision: int = 0
    latency_s: float | None = None
    """Seconds, signed and never clipped: a negative one says that somebody did not wait."""
    of: int | None = None
    """The id of the signal that this one follows: the barge-in of a yield."""
    value: str | None = None
    detector: str = DETECTOR
