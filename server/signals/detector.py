"""The signals of one call, frame by frame: both sides in, what happened out.

Joins the parts that know one thing each: who speaks (`activity`), what is echo (`echo`), and the rules (`overlaps`,
`replies`, `monologues`). It knows nothing of other calls, sockets or storage.

The clock of a call is its frames: frame n begins at n times the frame's length. The model's sound of a frame begins
when that frame begins, as in the time-synchronous recordings of Full-Duplex-Bench; where the client reports what it has
played, the model's side is moved to when it was heard.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.signals.activity import ModelTrack, UserTrack
from server.signals.echo import EchoGuard
from server.signals.kinds import DETECTOR, Signal, SignalKind
from server.signals.ledger import Ledger
from server.signals.monologues import Monologues
from server.signals.overlaps import Overlaps
from server.signals.replies import Replies
from server.signals.thresholds import DEFAULT, Thresholds
from server.signals.vad import HOP_S, SAMPLE_RATE_HZ, Hop

__all__ = ["CallDetector", "HeardAndSaid"]

_LONGEST_LAG_S: Final = 2.0
_MOST_HELD: Final = 8
"""Hops that wait until there is enough sound to tell whether it is echo: three frames' worth."""
_SILENT: Final = Hop(probability=0.0, level_dbfs=-100.0)

Pcm = NDArray[np.float32]


class HeardAndSaid(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One frame of both sides. Sound is float32 at 16 kHz, both of the same length."""

    heard: Pcm
    said: Pcm
    """Zeros where the model has nothing out."""
    word: bool
    """A word of the model's text begins in it."""


class CallDetector:
    """What happens in one call. `frame_s` is the length of a frame; `vad` names what found the voices."""

    def __init__(self, *, frame_s: float, vad: str = "silero-6.2", thresholds: Thresholds = DEFAULT) -> None:
        self._frame_s = frame_s
        self._limits = thresholds
        self._ledger = Ledger(f"{DETECTOR}/{vad}")
        self._user = UserTrack(thresholds)
        self._model = ModelTrack(thresholds, sample_rate=SAMPLE_RATE_HZ)
        self._overlaps = Overlaps(thresholds, self._ledger)
        self._replies = Replies(thresholds, self._ledger, self._overlaps)
        self._monologues = Monologues(thresholds, self._ledger)
        self._echo = EchoGuard(reach_s=thresholds.echo_reach_s)
        self._frames = 0
        self._hops = 0
        self._held: list[Hop] = []
        self._sounded = -1_000_000
        self._late: deque[tuple[int, HeardAndSaid]] = deque()
        self._lag = 0

    @property
    def version(self) -> str:
        """What finds the signals, for the record."""
        return self._ledger.detector

    @property
    def now(self) -> float:
        """Seconds of the call so far."""
        return self._frames * self._frame_s

    @property
    def silent_s(self) -> float:
        """Seconds since either side was last heard."""
        turns = [track.turn for track in (self._user, self._model) if track.turn is not None]
        return self.now - max((turn.t1 for turn in turns), default=0.0)

    def frame(self, both: HeardAndSaid, hops: Sequence[Hop]) -> list[Signal]:
        """Take one frame and the hops that it completed. Returns what is new or revised."""
        self._echo.feed(both.heard, both.said)
        for hop in self._without_echo(both, hops):
            self._user.feed(self._hops * HOP_S, hop)
            self._hops += 1
        self._late.append((self._frames, both))
        while self._late and self._late[0][0] + self._lag <= self._frames:
            index, late = self._late.popleft()
            t0 = (index + self._lag) * self._frame_s
            self._model.feed(t0, late.said, word=late.word, over_user=self._user.speaking)
        self._frames += 1
        self._judge()
        return self._ledger.take()

    def played(self, played_s: float) -> None:
        """Note what the client has played of the model's sound, in seconds since the call's first frame."""
        lag_s = min(_LONGEST_LAG_S, max(0.0, self.now - played_s))
        self._lag = round(lag_s / self._frame_s)

    def skip(self, frames: int) -> None:
        """Note frames that were not listened to: time goes on, and nothing is known of them."""
        self._frames += frames
        self._hops = round(self._frames * self._frame_s / HOP_S)
        self._held = []

    def feedback(self, value: str, t: float | None = None) -> list[Signal]:
        """Note an explicit "up" or "down" about what was said at `t` seconds, by default now."""
        at = self.now if t is None else min(max(t, 0.0), self.now)
        self._ledger.add(SignalKind.FEEDBACK, at, at, 1.0, value=value)
        return self._ledger.take()

    def close(self, *, hung_up: bool) -> list[Signal]:
        """End the call. `hung_up`: the user closed it cleanly."""
        if hung_up and self._model.speaking:
            self._ledger.add(SignalKind.HANG_UP, self.now, self.now, 0.9)
        return self._ledger.close()

    def _judge(self) -> None:
        self._replies.step(self.now, self._user, self._model)
        self._overlaps.step(self.now, self._user, self._model, continuation=self._replies.continuation)
        self._monologues.step(self._user, self._model)

    def _without_echo(self, both: HeardAndSaid, hops: Sequence[Hop]) -> Sequence[Hop]:
        if float(np.var(both.said)) > 10 ** (self._limits.model_on_dbfs / 10):
            self._sounded = self._frames
        hops = [*self._held, *hops]
        self._held = []
        recent = (self._frames - self._sounded) * self._frame_s <= self._limits.echo_reach_s
        # What is too quiet to be the user needs no second look, and a look costs more than all the rest.
        if not recent or not any(self._user.minds(self._hops * HOP_S, hop) for hop in hops):
            return hops
        if self._echo.sounding_s < self._limits.echo_sound_s and len(hops) < _MOST_HELD:
            self._held = hops
            return []
        if self._echo.share() < self._limits.echo_share:
            return hops
        self._user.stray()
        return [_SILENT] * len(hops)
