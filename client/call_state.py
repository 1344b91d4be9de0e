"""What is known of a call while it goes on: the conversation writes it, the screen reads it.

It holds the last words that were said, in memory alone; nothing here writes anywhere.
"""

import time
from collections import deque
from enum import StrEnum
from typing import Final

from server.protocol import SignalNotice

__all__ = ["CallState", "Connection", "Notice"]

_MOST_CHARACTERS: Final = 4000
_MOST_SIGNALS: Final = 6
_MOST_NOTICES: Final = 3


class Connection(StrEnum):
    """How the call stands."""

    CALLING = "calling"
    WAITING = "waiting"
    TALKING = "talking"
    STALLED = "stalled"
    LOST = "lost"
    OVER = "over"


Notice = tuple[float, str]
"""When, in monotonic seconds, and a sentence."""


class CallState:
    """One call as its user sees it. Written on the event loop; a reader in another thread sees whole values."""

    def __init__(self) -> None:
        self.connection = Connection.CALLING
        self.began_at: float | None = None
        """Monotonic seconds at which somebody first listened."""
        self.session: str | None = None
        self.adapter: str | None = None
        self.consent = ""
        self.words = ""
        self.delay_ms: float | None = None
        """From the start of a caller's frame to the first moment at which the answer to it can be heard, 160 ms of
        which are the model's own. Smoothed over a second."""
        self.lag_ms = 0
        """What waits on the server."""
        self.lost_ms = 0
        """What the server lost of either side's sound."""
        self.reconnected = 0
        self.feedback = ""
        self.notices: deque[Notice] = deque(maxlen=_MOST_NOTICES)
        self._signals: dict[int, SignalNotice] = {}

    @property
    def signals(self) -> list[SignalNotice]:
        """The latest of what the server saw, as last revised."""
        return [each for each in list(self._signals.values()) if each.state != "withdrawn"][-_MOST_SIGNALS:]

    @property
    def age_s(self) -> float:
        """Seconds since somebody first listened."""
        return 0.0 if self.began_at is None else time.monotonic() - self.began_at

    def tell(self, sentence: str) -> None:
        """Let the user know something. Said again, it takes the place of the same sentence."""
        if self.notices and self.notices[-1][1] == sentence:
            self.notices.pop()
        self.notices.append((time.monotonic(), sentence))

    def add_words(self, piece: str) -> None:
        """Add a piece of the model's text."""
        self.words = (self.words + piece)[-_MOST_CHARACTERS:]

    def add_signal(self, notice: SignalNotice) -> None:
        """Add what the server saw, or revise it."""
        self._signals[notice.id] = notice
        while len(self._signals) > 4 * _MOST_SIGNALS:
            self._signals.pop(next(iter(self._signals)))

    def begin_anew(self) -> None:
        """Another conversation: what was seen in the last one means nothing in it."""
        self._signals.clear()
        self.lag_ms = self.lost_ms = 0
        self.delay_ms = None
        if self.words:
            self.words += "\n"
