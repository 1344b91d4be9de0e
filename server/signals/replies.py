"""The model after the user: responses and how late they are, cut-offs, pauses taken over, and silence.

When the model starts, what it does is announced as a response; if the user turns out not to have ended, the same
signal becomes a cut-off or a pause takeover. Times and definitions: `thresholds`.
"""

import msgspec

from server.signals.activity import ModelTrack, Turn, UserTrack
from server.signals.kinds import SignalKind, State
from server.signals.ledger import Ledger
from server.signals.overlaps import Overlaps
from server.signals.thresholds import Thresholds

__all__ = ["Replies"]

_PAUSE_MARGIN_S = 0.1
_CERTAIN_ANSWER_S = 1.5


class _Reply(msgspec.Struct, eq=False):
    """A turn of the model and the turn of the user that it came after, or into."""

    user: Turn
    model: Turn
    in_pause: bool
    """The user was silent when it began."""
    signal: int
    end: Turn
    """The user's latest turn that belongs to the same asking: where he really ended."""


class Replies:
    """Watches each turn of the model that follows one of the user's."""

    def __init__(self, thresholds: Thresholds, ledger: Ledger, overlaps: Overlaps) -> None:
        self._limits = thresholds
        self._ledger = ledger
        self._overlaps = overlaps
        self._model_seen: Turn | None = None
        self._user_seen: Turn | None = None
        self._answered: Turn | None = None
        self._missed: Turn | None = None
        self._reply: _Reply | None = None
        self.continuation: Turn | None = None
        """A turn of the user that only goes on with the one before."""

    def step(self, now: float, user: UserTrack, model: ModelTrack) -> None:
        """Look again at `now`, the end of a frame."""
        if user.turn is not None and user.turn is not self._user_seen:
            self._user_began(user.turn)
        if model.turn is not None and model.turn is not self._model_seen:
            self._model_began(model.turn, user.turn)
        if self._reply is not None:
            self._follow(now, self._reply)
        if user.turn is not None:
            self._look_for_silence(now, user.turn, model)

    def _user_began(self, turn: Turn) -> None:
        before, self._user_seen = self._user_seen, turn
        reply = self._reply
        if reply is None or before is None or reply.end is not before or turn.t0 - before.t1 > self._limits.pause_s:
            return
        if before.t1 < reply.model.t0 < turn.t0 and reply.user.t1 < reply.model.t0:
            self.continuation = reply.end = turn
            reply.in_pause = True

    def _model_began(self, said: Turn, asked: Turn | None) -> None:
        self._model_seen = said
        if asked is None or asked is self._answered or self._overlaps.is_backchannel(asked):
            return
        if asked.sound_s < self._limits.shortest_turn_s:
            return
        self._settle()
        self._answered = asked
        t0, t1 = sorted((asked.t1, said.t0))
        latency_s = round(said.t0 - asked.t1, 3)
        number = self._ledger.add(SignalKind.RESPONSE, t0, t1, 0.6, state=State.PROVISIONAL, latency_s=latency_s)
        self._reply = _Reply(
            user=asked, model=said, in_pause=said.t0 > asked.t1 + _PAUSE_MARGIN_S, signal=number, end=asked
        )

    def _follow(self, now: float, reply: _Reply) -> None:
        limits = self._limits
        lead_s = reply.end.t1 - reply.model.t0
        taken = reply.model.length_s >= limits.takeover_s or reply.model.words > limits.takeover_words
        early = lead_s > limits.cut_off_s or reply.end is not reply.user
        if not early:
            t0, t1 = sorted((reply.end.t1, reply.model.t0))
            self._ledger.revise(reply.signal, t0=t0, t1=t1, latency_s=-lead_s)
            if reply.end.ended and now - reply.end.t1 > limits.pause_s + limits.noticed_late_s:
                self._settle(confidence=0.9)
            return
        kind = SignalKind.PAUSE_TAKEOVER if reply.in_pause else SignalKind.CUT_OFF
        self._ledger.revise(
            reply.signal,
            kind=kind,
            t0=reply.model.t0,
            t1=reply.end.t1,
            latency_s=-lead_s,
            confidence=0.9 if taken else 0.6,
        )
        if reply.model.ended and not taken:
            self._withdraw(reply)
        elif reply.end.ended and taken:
            self._settle()

    def _withdraw(self, reply: _Reply) -> None:
        """The model only made a short sound while the user spoke: the user's turn is still unanswered."""
        self._ledger.withdraw(reply.signal)
        self._reply = None
        if self._answered is reply.user:
            self._answered = None

    def _settle(self, confidence: float | None = None) -> None:
        if self._reply is not None:
            more = {} if confidence is None else {"confidence": confidence}
            self._ledger.settle(self._reply.signal, **more)
            self._answered = self._reply.end
            self._reply = None

    def _look_for_silence(self, now: float, asked: Turn, model: ModelTrack) -> None:
        if asked in (self._answered, self._missed, self.continuation) or not asked.ended:
            return
        if asked.sound_s < self._limits.shortest_turn_s or self._overlaps.is_backchannel(asked):
            return
        since = asked.t1
        over = self._overlaps.began_over(asked)
        if over is not None:
            if over.t1 > asked.t1 + _CERTAIN_ANSWER_S:  # it talked on, and its talk may be the answer
                self._answered = asked
                return
            since = max(since, over.t1)
        if not model.speaking and now - since > self._limits.no_response_s:
            self._missed = asked
            self._ledger.add(SignalKind.NO_RESPONSE, asked.t1, now, 0.9)
