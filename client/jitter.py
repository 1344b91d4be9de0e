"""The jitter buffer: sound arrives when the network lets it, and leaves when the loudspeaker asks for it.

It looks at one figure, the *cushion*: what still waits at the moment when new sound arrives. The smallest cushion of
the last ten seconds is delay that nobody needed; all of it but a small margin is taken out, in silence where there is
silence, else by leaving out whole pitch periods of the voice. A cushion of zero was an underrun: the silence that
filled it has already made the delay longer by as much as the sound was late. So the buffer follows the network both
ways, and is bounded (docs/decisions/0050-jitter-buffer.md).

It knows samples and a lock. It knows nothing of sockets, cards or Opus. Shapes: sound is float32 [samples] at 24 kHz.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from client.sound import FRAME_SIZE, SAMPLE_RATE_HZ, Pcm

__all__ = ["JitterBuffer", "JitterFigures", "JitterSettings"]

_PER_MS: Final = SAMPLE_RATE_HZ // 1000
_LONG: Final = 125
"""Arrivals that are remembered: ten seconds of frames."""
_SHORT: Final = 12
"""Arrivals that decide whether the buffer is above its ceiling, and that must have come before anything is cut."""
_HOP: Final = 10 * _PER_MS
_FADE: Final = 5 * _PER_MS
_QUIET: Final = 10 ** (-50 / 20)
"""RMS of 10 ms that nobody misses."""
_SHORTEST_PERIOD: Final = 5 * _PER_MS
_LONGEST_PERIOD: Final = 20 * _PER_MS
"""A voice's pitch periods, 50 to 200 Hz, or several of a higher voice."""
_NOBODY_S: Final = 0.2
"""Loudspeakers that have asked for nothing for so long do not play: not yet, or no longer."""


class JitterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds.

    `start_ms` is the cushion that a call begins with, `margin_ms` the one that is left when nothing was late for ten
    seconds. `ceiling_ms` is the largest that lateness may call for; `limit_ms` the most that ever waits: what is older
    is thrown away. Sound is shortened within speech from an excess of `hurry_ms` on, otherwise only within silence.
    """

    start_ms: int = 40
    margin_ms: int = 20
    ceiling_ms: int = 200
    limit_ms: int = 1000
    hurry_ms: int = 60
    step_ms: int = 10


class JitterFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the buffer holds and what it did, in milliseconds since it was made.

    `cushion_ms` is the smallest of the last ten seconds. `silence_ms` was played where sound was late in `underruns`
    places; `cut_ms` was taken out to be near the present again; `dropped_ms` was thrown away above the limit.
    """

    waiting_ms: float
    cushion_ms: float
    underruns: int
    silence_ms: float
    cut_ms: float
    dropped_ms: float


class JitterBuffer:
    """One stream of sound. `put` is for the event loop, `take` for the sound card's thread; neither waits."""

    def __init__(self, settings: JitterSettings | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds; it only tells whether anybody plays."""
        self._settings = settings or JitterSettings()
        self._clock = clock
        self._taken_at = -math.inf
        self._lock = threading.Lock()
        self._sound: Pcm = np.zeros(0, np.float32)
        self._cushions: deque[int] = deque(maxlen=_LONG)
        self._started = self._starving = False
        self._put = 0
        self._underruns = self._silence = self._cut = self._dropped = 0

    def put(self, pcm: Pcm) -> None:
        """Add sound that has arrived."""
        with self._lock:
            if not self._started:
                self._sound = np.zeros(self._settings.start_ms * _PER_MS, np.float32)
            if self._nobody_plays():
                self._forget()
            self._cushions.append(len(self._sound))
            self._sound = np.concatenate((self._sound, _faded_in(pcm) if self._starving else pcm))
            self._put += len(pcm)
            self._started, self._starving = True, False
            self._shorten(len(pcm))
            self._bound()

    def take(self, count: int) -> Pcm:
        """Give `count` samples; where there are none, silence."""
        with self._lock:
            self._note_taking()
            given, self._sound = self._sound[:count], self._sound[count:]
            missing = count - len(given)
            if not missing:
                return given
            if self._started:
                self._note_underrun(missing)
            return np.concatenate((_faded_out(given), np.zeros(missing, np.float32)))

    def restart(self) -> None:
        """Forget how the network was: what comes next begins anew, with the cushion of a beginning."""
        with self._lock:
            self._cushions.clear()
            self._started = self._starving = False

    @property
    def put_samples(self) -> int:
        """Samples that were put so far."""
        with self._lock:
            return self._put

    @property
    def played(self) -> int:
        """Samples of what was put that have left, whether they were given or thrown away."""
        with self._lock:
            return max(0, self._put - len(self._sound))

    @property
    def waiting_ms(self) -> float:
        """What waits now."""
        with self._lock:
            return len(self._sound) / _PER_MS

    def figures(self) -> JitterFigures:
        """Sum up."""
        with self._lock:
            return JitterFigures(
                waiting_ms=len(self._sound) / _PER_MS,
                cushion_ms=min(self._cushions, default=0) / _PER_MS,
                underruns=self._underruns,
                silence_ms=self._silence / _PER_MS,
                cut_ms=self._cut / _PER_MS,
                dropped_ms=self._dropped / _PER_MS,
            )

    def _nobody_plays(self) -> bool:
        return self._clock() - self._taken_at > _NOBODY_S

    def _note_taking(self) -> None:
        if self._nobody_plays():
            self._cushions.clear()
        self._taken_at = self._clock()

    def _forget(self) -> None:
        """Nobody plays: keep no more than a beginning needs, or the whole call is heard so much later."""
        surplus = max(0, len(self._sound) - self._settings.start_ms * _PER_MS)
        self._sound = self._sound[surplus:]
        self._dropped += surplus
        self._cushions.clear()

    def _note_underrun(self, missing: int) -> None:
        """Silence was played: from now on every arrival would have found so much more waiting."""
        self._underruns += not self._starving
        self._starving = True
        self._silence += missing
        self._move_cushions(missing)

    def _shorten(self, newest: int) -> None:
        excess = self._excess()
        if excess < self._settings.step_ms * _PER_MS:
            return
        older, new = self._sound[: len(self._sound) - newest], self._sound[len(self._sound) - newest :]
        shorter = _without_silence(new, excess)
        if len(shorter) == newest and excess >= self._settings.hurry_ms * _PER_MS:
            shorter = _without_a_period(new)
        self._sound = np.concatenate((older, shorter))
        self._cut += newest - len(shorter)
        self._move_cushions(len(shorter) - newest)

    def _excess(self) -> int:
        """Samples of delay that nothing calls for."""
        if len(self._cushions) < _SHORT:
            return 0
        latest = min(list(self._cushions)[-_SHORT:])
        unused = min(self._cushions) - self._settings.margin_ms * _PER_MS
        return max(unused, latest - self._settings.ceiling_ms * _PER_MS)

    def _bound(self) -> None:
        surplus = len(self._sound) - max(self._settings.limit_ms * _PER_MS, FRAME_SIZE)
        if surplus > 0:
            self._sound = _faded_in(self._sound[surplus:])
            self._dropped += surplus
            self._move_cushions(-surplus)

    def _move_cushions(self, by: int) -> None:
        self._cushions = deque((max(0, each + by) for each in self._cushions), maxlen=_LONG)


def _without_silence(pcm: Pcm, most: int) -> Pcm:
    """Leave out up to `most` samples of the longest quiet run, all of it but a cross-fade."""
    hops = len(pcm) // _HOP
    loud = np.sqrt(np.square(pcm[: hops * _HOP].reshape(hops, _HOP)).mean(axis=1)) > _QUIET if hops else np.zeros(0)
    edges = np.flatnonzero(np.diff(np.concatenate(([1], loud, [1]))))
    runs = [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]
    if not runs:
        return pcm
    first, last = max(runs, key=lambda run: run[1] - run[0])
    room = (last - first) * _HOP - _FADE
    return _leave_out(pcm, first * _HOP, min(most, room)) if room > 0 else pcm


def _without_a_period(pcm: Pcm) -> Pcm:
    """Leave out the stretch of 5 to 20 ms that is most like the one before it (as WSOLA does)."""
    if len(pcm) < 2 * _LONGEST_PERIOD + _FADE:
        return pcm
    model = pcm[:_LONGEST_PERIOD]
    lags = np.arange(_SHORTEST_PERIOD, _LONGEST_PERIOD + 1)
    products = np.correlate(pcm[_SHORTEST_PERIOD : 2 * _LONGEST_PERIOD], model, "valid")
    energy = np.concatenate(([0.0], np.cumsum(np.square(pcm, dtype=np.float64))))
    likeness = products / np.sqrt(energy[lags + _LONGEST_PERIOD] - energy[lags] + 1e-9)
    return _leave_out(pcm, 0, int(lags[int(likeness.argmax())]))


def _leave_out(pcm: Pcm, start: int, count: int) -> Pcm:
    """Take `count` samples out at `start`, with a cross-fade from what begins there to what follows."""
    rise = np.linspace(0.0, 1.0, _FADE, dtype=np.float32)
    joint = pcm[start : start + _FADE] * (1 - rise) + pcm[start + count : start + count + _FADE] * rise
    return np.concatenate((pcm[:start], joint, pcm[start + count + _FADE :]))


def _faded_in(pcm: Pcm) -> Pcm:
    size = min(_FADE, len(pcm))
    return np.concatenate((pcm[:size] * np.linspace(0.0, 1.0, size, dtype=np.float32), pcm[size:]))


def _faded_out(pcm: Pcm) -> Pcm:
    return _faded_in(pcm[::-1])[::-1]
