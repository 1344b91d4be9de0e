"""The model talking for long without the user. Times: `thresholds`."""

from server.signals.activity import ModelTrack, Turn, UserTrack
from server.signals.kinds import SignalKind, State
from server.signals.ledger import Ledger
from server.signals.thresholds import Thresholds

__all__ = ["Monologues"]


class Monologues:
    """Watches how long the model has talked since it began, or since the user last spoke."""

    def __init__(self, thresholds: Thresholds, ledger: Ledger) -> None:
        self._limits = thresholds
        self._ledger = ledger
        self._user_seen: Turn | None = None
        self._t0 = 0.0
        self._t1 = 0.0
        self._talking = False
        self._signal = 0

    def step(self, user: UserTrack, model: ModelTrack) -> None:
        """Look again at the end of a frame."""
        if user.turn is not self._user_seen:
            self._user_seen = user.turn
            self._end()
        if model.turn is None or not model.speaking:
            return
        if not self._talking or model.turn.t0 - self._t1 > self._limits.monologue_gap_s:
            self._end()
            self._talking, self._t0 = True, max(model.turn.t0, user.turn.t1 if user.turn else 0.0)
        self._t1 = model.turn.t1
        if self._t1 - self._t0 >= self._limits.monologue_s:
            if self._signal:
                self._ledger.revise(self._signal, t1=self._t1)
            else:
                self._signal = self._ledger.add(SignalKind.MONOLOGUE, self._t0, self._t1, 0.95, state=State.PROVISIONAL)

    def _end(self) -> None:
        self._ledger.settle(self._signal)
        self._talking, self._signal = False, 0
