"""Who spoke when, from sound levels alone: speech spans, turns, and how long the other side took to answer.

The same simple rule is applied to both sides, so a latency compares like with like. It needs no model and
little memory: one level per 10 ms. It cannot tell speech from other loud sounds; the server's signals can.
"""

from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from client.sound import SAMPLE_RATE_HZ, Pcm

__all__ = ["HOP_S", "LevelMeter", "Span", "Turn", "join_spans", "speech_spans", "turns"]

HOP_S = 0.01
_HOP = round(HOP_S * SAMPLE_RATE_HZ)
_QUIET_DBFS = -50.0  # nothing below this is called speech
_BELOW_LOUD_DB = 30.0  # speech stays within this range of a side's loud parts
_ABOVE_FLOOR_DB = 8.0  # and this much above its background noise
_LOUDEST_HOPS = 10  # a click is loud for a shorter time
_SHORTEST_SPEECH_S = 0.06
_BRIDGE_S = 0.2  # gaps between words
USER_PAUSE_S = 1.0  # a user's pause shorter than this stays inside the turn
MODEL_PAUSE_S = 0.6
_TEXT_AHEAD_S = 1.0  # text runs ahead of its sound by a few frames, never by more


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of the call, in seconds from the caller's first sample."""

    start_s: float
    end_s: float


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the user and the model's answer to it. Times in seconds on the call's clock.

    `latency_s` is the model's first sound minus the user's last: negative when the model started before the
    user had ended, None when it never answered. `text_latency_s` is the same for the first word of its text,
    and `heard_latency_s` for the moment when the sound had reached the caller, where that was measured.
    """

    user: Span
    reply: Span | None
    latency_s: float | None
    text_latency_s: float | None
    heard_latency_s: float | None


class LevelMeter:
    """Turns a stream of blocks into one RMS level in dBFS per 10 ms."""

    def __init__(self) -> None:
        self._levels = array("f")
        self._left_over = np.zeros(0, np.float32)

    def add(self, pcm: Pcm) -> None:
        """Append float32 [samples], any number of them."""
        joined = np.concatenate([self._left_over, pcm])
        whole = len(joined) // _HOP * _HOP
        self._left_over = joined[whole:]
        power = np.square(joined[:whole].reshape(-1, _HOP)).mean(axis=1)
        self._levels.extend((10 * np.log10(power + 1e-12)).tolist())

    @property
    def levels_dbfs(self) -> npt.NDArray[np.float32]:
        """float32 [hops]: every whole hop so far."""
        return np.array(self._levels, np.float32)


def speech_spans(levels_dbfs: npt.NDArray[np.float32]) -> list[Span]:
    """Stretches of `levels_dbfs` (float32 [hops]) that are loud enough to be speech, word gaps bridged."""
    loud = np.flatnonzero(levels_dbfs > _threshold_dbfs(levels_dbfs))
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > round(_BRIDGE_S / HOP_S))
    starts = loud[np.concatenate([[0], breaks + 1])]
    ends = loud[np.concatenate([breaks, [len(loud) - 1]])] + 1
    spans = [
        Span(start_s=round(s * HOP_S, 2), end_s=round(e * HOP_S, 2))
        for s, e in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    return [span for span in spans if span.end_s - span.start_s >= _SHORTEST_SPEECH_S]


def _threshold_dbfs(levels: npt.NDArray[np.float32]) -> float:
    audible = levels[levels > _QUIET_DBFS]
    if not len(audible):
        return _QUIET_DBFS
    loud = float(np.sort(audible)[-_LOUDEST_HOPS:][0])
    threshold = max(_QUIET_DBFS, loud - _BELOW_LOUD_DB)
    over_noise = float(np.percentile(levels, 10)) + _ABOVE_FLOOR_DB
    # A recording without any pause has no floor to measure: its tenth percentile is speech.
    return max(threshold, over_noise) if over_noise < loud - _ABOVE_FLOOR_DB else threshold


def join_spans(spans: Sequence[Span], *, pause_s: float) -> list[Span]:
    """Merge neighbours that are less than `pause_s` apart."""
    joined: list[Span] = []
    for span in spans:
        if joined and span.start_s - joined[-1].end_s < pause_s:
            joined[-1] = Span(start_s=joined[-1].start_s, end_s=span.end_s)
        else:
            joined.append(span)
    return joined


def turns(
    user: Sequence[Span], model: Sequence[Span], text_times_s: Sequence[float], *, heard_after_s: float | None = None
) -> list[Turn]:
    """Pair every turn of the user with the model's answer to it.

    The answer is the first stretch of the model's speech that begins after the user began, before the user's
    next turn, and lasts beyond the user's end (a "mm-hm" inside the question is no answer). `text_times_s` says
    when the model wrote, `heard_after_s` how much later than on the call's clock its sound reaches the caller.
    """
    asked = join_spans(user, pause_s=USER_PAUSE_S)
    replies = join_spans(model, pause_s=MODEL_PAUSE_S)
    limits_s = [*(span.start_s for span in asked[1:]), float("inf")]
    return [
        _turn(span, _reply(span, limit_s, replies), text_times_s, heard_after_s)
        for span, limit_s in zip(asked, limits_s, strict=False)  # nobody asked: a limit is left over
    ]


def _reply(user: Span, limit_s: float, replies: Sequence[Span]) -> Span | None:
    return next((r for r in replies if user.start_s < r.start_s < limit_s and r.end_s > user.end_s), None)


def _turn(user: Span, reply: Span | None, text_times_s: Sequence[float], heard_after_s: float | None) -> Turn:
    if reply is None:
        return Turn(user=user, reply=None, latency_s=None, text_latency_s=None, heard_latency_s=None)
    latency_s = reply.start_s - user.end_s
    earliest_s = max(user.start_s, reply.start_s - _TEXT_AHEAD_S)
    word_s = next((t_s for t_s in text_times_s if earliest_s <= t_s <= reply.end_s), None)
    return Turn(
        user=user,
        reply=reply,
        latency_s=round(latency_s, 3),
        text_latency_s=None if word_s is None else round(word_s - user.end_s, 3),
        heard_latency_s=None if heard_after_s is None else round(latency_s + heard_after_s, 3),
    )
