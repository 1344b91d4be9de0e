"""What happens between the two speakers of a call, found while it happens.

`Board` hears all calls and gives `Signal`s; `CallDetector` is one call.
"""

from server.signals.board import Board, RowFrame
from server.signals.detector import CallDetector, HeardAndSaid
from server.signals.kinds import DETECTOR, Signal, SignalKind, State
from server.signals.thresholds import DEFAULT, Thresholds

__all__ = [
    "DEFAULT",
    "DETECTOR",
    "Board",
    "CallDetector",
    "HeardAndSaid",
    "RowFrame",
    "Signal",
    "SignalKind",
    "State",
    "Thresholds",
]
