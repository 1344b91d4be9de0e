"""The signals of one call: numbered, announced, revised under the same number, withdrawn.

It knows when a revision is worth telling and nothing of what the kinds mean.
"""

from typing import Any

import msgspec

from server.signals.kinds import DETECTOR, Signal, SignalKind, State

__all__ = ["Ledger"]


class Ledger:
    """Numbers signals from 1 and keeps what was said last of each open one."""

    def __init__(self, detector: str = DETECTOR) -> None:
        self.detector = detector
        self._next = 1
        self._open: dict[int, Signal] = {}
        self._new: list[Signal] = []

    def take(self) -> list[Signal]:
        """Give what is new or revised since the last time, each at most once."""
        latest = {signal.id: signal for signal in self._new}
        self._new = []
        return list(latest.values())

    def add(self, kind: SignalKind, t0: float, t1: float, confidence: float, **more: Any) -> int:
        """Note a signal. Returns its number."""
        number, self._next = self._next, self._next + 1
        signal = Signal(
            id=number, kind=kind, t0=_ms(t0), t1=_ms(t1), confidence=confidence, detector=self.detector, **more
        )
        self._note(signal)
        return number

    def revise(self, number: int, **changes: Any) -> None:
        """Change an open signal; nothing happens when nothing changes or the signal is final."""
        known = self._open.get(number)
        if known is None:
            return
        for name in ("t0", "t1", "latency_s"):
            if changes.get(name) is not None:
                changes[name] = _ms(changes[name])
        changed = msgspec.structs.replace(known, **changes)
        if changed != known:
            self._note(msgspec.structs.replace(changed, revision=known.revision + 1))

    def settle(self, number: int, **changes: Any) -> None:
        """Make an open signal final."""
        self.revise(number, state=State.FINAL, **changes)

    def withdraw(self, number: int) -> None:
        """Say that an open signal was none."""
        self.revise(number, state=State.WITHDRAWN, confidence=0.0)

    def close(self) -> list[Signal]:
        """Settle all that is open, for the call is over, and give what is new."""
        for number in list(self._open):
            self.settle(number)
        return self.take()

    def kind(self, number: int) -> SignalKind | None:
        """What an open signal is at present; None when it is settled or withdrawn."""
        known = self._open.get(number)
        return known.kind if known else None

    def _note(self, signal: Signal) -> None:
        if signal.state is State.PROVISIONAL:
            self._open[signal.id] = signal
        else:
            self._open.pop(signal.id, None)
        self._new.append(signal)


def _ms(seconds: float) -> float:
    return round(seconds, 3)
