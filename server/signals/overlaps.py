"""The user over the model: barge-in or backchannel, and whether the model gives way.

A sound over the model's voice is announced as a backchannel, becomes a barge-in when it goes on, and is settled under
the same id when the user stops. Times and definitions: `thresholds`.
"""

import msgspec

from server.signals.activity import ModelTrack, Turn, UserTrack
from server.signals.kinds import SignalKind, State
from server.signals.ledger import Ledger
from server.signals.thresholds import Thresholds

__all__ = ["Overlaps"]


class _Watched(msgspec.Struct, eq=False):
    """A turn of the user that began over the model's, and what has been said of it."""

    user: Turn
    model: Turn
    signal: int = 0
    kind: SignalKind = SignalKind.BACKCHANNEL
    outcome: int = 0
    """The number of its yield or no_yield."""
    done: bool = False


class Overlaps:
    """Watches each turn of the user that begins while the model speaks."""

    def __init__(self, thresholds: Thresholds, ledger: Ledger) -> None:
        self._limits = thresholds
        self._ledger = ledger
        self._seen: Turn | None = None
        self._watched: _Watched | None = None

    def is_backchannel(self, turn: Turn) -> bool:
        """Whether a turn was, or so far is, no more than a short sound over the model."""
        watched = self._watched
        return watched is not None and watched.user is turn and watched.kind is SignalKind.BACKCHANNEL

    def began_over(self, turn: Turn) -> Turn | None:
        """The model's turn over which the user's began."""
        watched = self._watched
        return watched.model if watched is not None and watched.user is turn else None

    def step(self, now: float, user: UserTrack, model: ModelTrack, *, continuation: Turn | None) -> None:
        """Look again at `now`, the end of a frame. A turn that goes on after a pause is no interruption."""
        turn = user.turn
        if turn is not None and turn is not self._seen and turn is not continuation:
            over = self._over(turn, model)
            if over is not None:
                self._finish(now)
                self._seen, self._watched = turn, _Watched(user=turn, model=over)
            elif turn.length_s > self._limits.announce_s:
                self._seen = turn
        if self._watched is not None and not self._watched.done:
            self._follow(now, self._watched)

    def _over(self, turn: Turn, model: ModelTrack) -> Turn | None:
        said = model.turn
        if said is None or said.t0 >= turn.t0 or turn.t0 - said.t1 > self._limits.overlap_reach_s:
            return None
        return said

    def _finish(self, now: float) -> None:
        """Close the turn before: a new one has begun."""
        if self._watched is not None and not self._watched.done:
            self._follow(now, self._watched)
            self._watched.done = True
            for number in (self._watched.signal, self._watched.outcome):
                self._ledger.settle(number)

    def _follow(self, now: float, watched: _Watched) -> None:
        self._judge(watched)
        if watched.kind is SignalKind.BARGE_IN:
            self._look_for_yield(watched)
        ended = watched.user.ended
        if ended and (watched.kind is SignalKind.BACKCHANNEL or self._is_decided(now, watched)):
            watched.done = True
        if ended:
            self._ledger.settle(watched.signal)
        if watched.done:
            self._ledger.settle(watched.outcome)

    def _judge(self, watched: _Watched) -> None:
        """Say what the sound is by now."""
        limits, turn = self._limits, watched.user
        long = turn.length_s >= limits.backchannel_s or turn.words > limits.backchannel_words
        goes_on = turn.length_s >= limits.barge_in_s
        kind = SignalKind.BARGE_IN if goes_on and (long or not turn.ended) else SignalKind.BACKCHANNEL
        confidence = 0.95 if long and goes_on else 0.8 if turn.ended else 0.6 if goes_on else 0.5
        if watched.signal:
            self._ledger.revise(watched.signal, kind=kind, t1=turn.t1, confidence=confidence)
        elif turn.length_s >= limits.announce_s or turn.ended:
            watched.signal = self._ledger.add(kind, turn.t0, turn.t1, confidence, state=State.PROVISIONAL)
        if kind is SignalKind.BACKCHANNEL and watched.outcome:
            self._ledger.withdraw(watched.outcome)
            watched.outcome = 0
        watched.kind = kind

    def _is_decided(self, now: float, watched: _Watched) -> bool:
        return bool(watched.outcome) and (watched.model.ended or now > watched.user.t0 + 2 * self._limits.no_yield_s)

    def _look_for_yield(self, watched: _Watched) -> None:
        latency_s = watched.model.t1 - watched.user.t0
        if latency_s > self._limits.no_yield_s:
            kind, decided = SignalKind.NO_YIELD, True
        else:
            kind, decided = SignalKind.YIELD, watched.model.ended
        if not decided:
            return
        t0, t1 = sorted((watched.user.t0, watched.model.t1))
        if watched.outcome:
            self._ledger.revise(watched.outcome, kind=kind, t0=t0, t1=t1, latency_s=latency_s)
        elif watched.signal:
            watched.outcome = self._ledger.add(
                kind, t0, t1, 0.9, state=State.PROVISIONAL, latency_s=round(latency_s, 3), of=watched.signal
            )
