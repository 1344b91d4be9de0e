"""From a complaint to a cut: where in the call the sides part, what the model is wished to do there, until when.

All on the frame grid of the journal's columns. It knows no model and does not say anything itself; why the numbers are
what they are is in decision 0031.
"""

from typing import Final

import msgspec

from online_align.conversation import Conversation, Turn
from online_align.labels import Label
from online_align.records import PairKind

__all__ = ["Cut", "NoCutError", "find_cut"]

_ANSWER_S: Final = 0.24
"""After the caller's end: where the sides of a silence part. An answer that begins here is heard 0.3 s after him."""
_LATEST_S: Final = 0.56
"""After the caller's end: where a reply begins if the model did not begin itself."""
_YIELD_S: Final = 0.24
"""After the start of a barge-in: the text stops here, its last word has sounded 0.1 to 0.2 s later."""
_LATE_ONSET: Final = 4
"""Columns by which a reply's first word may lie behind its first sound."""
_HEARD_LATE_S: Final = 2.0
"""A signal may know a reply so much later than it was said: a client plays late, and tells."""
_HARD_ON_S: Final = 0.1


class NoCutError(ValueError):
    """A complaint from which no pair can be made; the message says why."""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of the call."""

    kind: PairKind
    at: int
    """The first of both sides."""
    event: int
    """Counted from `at`."""
    quiet: int
    """So many columns from `at` on the better side says nothing."""
    start_by: int
    """Counted from `at`: here the better side begins at the latest."""
    reaction: int
    """The first in which the caller answers what was really said; the end of what is known where he does not."""
    asked: str
    """What the caller wanted, where somebody could hear it."""


def find_cut(call: Conversation, complaint: Label) -> Cut:
    """Find where a complaint's sides part. Raises `NoCutError`."""
    match complaint.kind:
        case PairKind.CUT_OFF:
            return _cut_off(call, complaint)
        case PairKind.NO_RESPONSE:
            return _no_response(call, complaint)
        case PairKind.NO_YIELD:
            return _no_yield(call, complaint)
        case PairKind.CONTENT:
            return _content(call, complaint)
        case _:
            raise NoCutError("no kind")


def _cut_off(call: Conversation, complaint: Label) -> Cut:
    reply = _begun_at(call, complaint.t0)
    ended = call.clock.after_heard(complaint.t1)
    if ended <= reply.first:
        raise NoCutError("the caller had ended")
    quiet = ended - reply.first
    return Cut(
        kind=PairKind.CUT_OFF,
        at=reply.first,
        event=0,
        quiet=quiet,
        start_by=quiet + _columns(call, _LATEST_S),
        reaction=_reaction(call, complaint.t1),
        asked=_asked(call, reply, complaint.t1),
    )


def _no_response(call: Conversation, complaint: Label) -> Cut:
    at = call.clock.after_heard(complaint.t0) + _columns(call, _ANSWER_S)
    reaction = _reaction(call, complaint.t0)
    if (spoken := next((turn for turn in call.model if turn.last >= at), None)) is not None:
        if spoken.first <= at:
            raise NoCutError("the model was speaking")
        reaction = min(reaction, spoken.first)
    return Cut(
        kind=PairKind.NO_RESPONSE,
        at=at,
        event=0,
        quiet=0,
        start_by=_columns(call, _LATEST_S - _ANSWER_S),
        reaction=reaction,
        asked=_asked(call, None, complaint.t0),
    )


def _no_yield(call: Conversation, complaint: Label) -> Cut:
    cut_in = call.clock.heard_at(complaint.t0)
    at = cut_in + _columns(call, _YIELD_S)
    if not any(turn.first < at < turn.last for turn in call.model):
        raise NoCutError("it had stopped writing")
    quiet = max(1, call.clock.after_heard(complaint.t1) - at)
    return Cut(
        kind=PairKind.NO_YIELD,
        at=at,
        event=cut_in - at,
        quiet=quiet,
        start_by=quiet + _columns(call, _LATEST_S),
        reaction=_reaction(call, complaint.t1),
        asked=" ".join(turn.text for turn in call.user if complaint.t0 - 0.3 <= turn.t0 < complaint.t1).strip(),
    )


def _content(call: Conversation, complaint: Label) -> Cut:
    reply = _begun_at(call, complaint.t0)
    return Cut(
        kind=PairKind.CONTENT,
        at=reply.first,
        event=0,
        quiet=0,
        start_by=_columns(call, _LATEST_S),
        reaction=_reaction(call, reply.t0),
        asked=_asked(call, reply, reply.t0),
    )


def _columns(call: Conversation, seconds: float) -> int:
    return round(seconds / call.clock.frame_s)


def _begun_at(call: Conversation, t_s: float) -> Turn:
    """The model's turn that was heard to begin at this moment."""
    at = call.clock.said_at(t_s)
    begun = [turn for turn in call.model if turn.first <= at + _LATE_ONSET]
    if not begun or begun[-1].t1 < t_s - _HEARD_LATE_S:
        raise NoCutError("no words at that time")
    return begun[-1]


def _reaction(call: Conversation, after_s: float) -> int:
    turn = call.next_user(after_s + _HARD_ON_S)
    return call.columns if turn is None else min(call.columns, call.clock.heard_at(turn.t0))


def _asked(call: Conversation, reply: Turn | None, until_s: float) -> str:
    """What the caller said since the model's reply before this one."""
    before = [turn for turn in call.model if turn is not reply and turn.t1 <= until_s]
    since_s = before[-1].t1 - _ANSWER_S if before else 0.0
    return " ".join(turn.text for turn in call.user if since_s <= turn.t0 <= until_s).strip()
