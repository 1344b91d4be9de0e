"""Beginnings of replies that nobody minded: what the supervised term holds on to while preferences pull.

A call in which every signal is harmless and the model answered when it was asked gives one span for each answer over
which the caller was silent at first: from a little before its first word to a second after it, which is where timing is
decided. Preferences alone teach to wait,
and then to be silent; these spans say when not to. It knows no weights.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_align.records import Evidence, Pair, PairKind, Side
from server.journal import Journal, JournalError
from server.journal.reader import SessionRow
from server.signals import Signal, SignalKind, State

__all__ = ["GoodSpan", "find_spans", "is_good_span", "may_go_on", "open_spans"]

_RULE: Final = "good-spans-2"
_COMPLAINTS: Final = frozenset(
    {SignalKind.CUT_OFF, SignalKind.PAUSE_TAKEOVER, SignalKind.NO_RESPONSE, SignalKind.NO_YIELD, SignalKind.REPEAT}
)
_DOWN: Final = "down"
_PROMPT_S: Final = 1.0
_GOES_ON_S: Final = 2.5
"""Whoever makes a sound so soon after he ended may not have ended."""
_BEFORE_S: Final = 0.32
_AFTER_S: Final = 0.8
_SEARCHED_S: Final = 1.5


class GoodSpan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a span is: a call, the tick of its first frame, and how many frames."""

    session: str
    at_tick: int
    frames: int


def find_spans(
    journal: Journal, *, checkpoint: str, base_sha256: str, silent: Collection[int], count: int
) -> list[GoodSpan]:
    """The newest `count` spans of calls to this model that may be trained on. `silent` are the padding tokens."""
    found: list[GoodSpan] = []
    for about in journal.reader.sessions(trainable=True):
        if len(found) >= count:
            break
        if about.ended_at is not None and about.is_of(checkpoint, base_sha256):
            found += _of_call(journal, about, silent)
    return found[:count]


def open_spans(journal: Journal, spans: Iterable[GoodSpan]) -> list[Pair]:
    """Spans as pairs whose chosen side is all that counts; those of calls that are gone are left out."""
    return [pair for span in spans for pair in _opened(journal, span)]


def is_good_span(pair: Pair) -> bool:
    """Whether this is a span that `open_spans` gave."""
    return pair.evidence.rule == _RULE


def may_go_on(answer: Signal, signals: Iterable[Signal]) -> bool:
    """Whether an answer may have come into a pause: the short rest of a question is heard as a hum over the answer."""
    hums = (signal for signal in signals if signal.kind is SignalKind.BACKCHANNEL)
    return any(0 < hum.t0 - answer.t0 < _GOES_ON_S for hum in hums)


def _of_call(journal: Journal, about: SessionRow, silent: Collection[int]) -> Iterator[GoodSpan]:
    signals = [signal for signal in journal.reader.signals(about.id) if signal.state is State.FINAL]
    if any(_is_complaint(signal) for signal in signals):
        return
    answers = [signal for signal in signals if _is_prompt(signal) and not may_go_on(signal, signals)]
    if not answers:
        return
    try:
        columns = journal.reader.columns(about.id)
    except JournalError:
        return
    whole = np.array_equal(columns.ticks_T, np.arange(len(columns.ticks_T)))
    for signal in answers if whole else ():
        start = _first_word(columns.tokens_TK[:, 0], signal.t0 * about.frame_rate, about.frame_rate, silent)
        before, after = round(_BEFORE_S * about.frame_rate), round(_AFTER_S * about.frame_rate)
        if start is not None and start >= before and start + after <= len(columns.ticks_T):
            yield GoodSpan(session=about.id, at_tick=start - before, frames=before + after)


def _is_complaint(signal: Signal) -> bool:
    return signal.kind in _COMPLAINTS or signal.value == _DOWN


def _is_prompt(signal: Signal) -> bool:
    return signal.kind is SignalKind.RESPONSE and abs(signal.latency_s or 0.0) <= _PROMPT_S


def _first_word(text_T: NDArray[np.int16], near: float, frame_rate: float, silent: Collection[int]) -> int | None:
    """The frame in which the model begins to write, near the end of the caller's turn, after a pause of its own."""
    first = max(1, round(near - _SEARCHED_S / 2 * frame_rate))
    speaks = ~np.isin(text_T, list(silent)) & (text_T >= 0)
    for frame in range(first, min(len(text_T), round(near + _SEARCHED_S * frame_rate))):
        if speaks[frame]:
            return None if speaks[max(0, frame - 4) : frame].any() else frame
    return None


def _opened(journal: Journal, span: GoodSpan) -> Iterator[Pair]:
    try:
        about, columns = journal.reader.session(span.session), journal.reader.columns(span.session)
    except JournalError:
        return
    end = span.at_tick + span.frames
    if not about.train or len(columns.ticks_T) < end:
        return
    said = columns.tokens_TK[span.at_tick : end]
    yield Pair(
        id=f"{_RULE}-{span.session}-{span.at_tick}",
        session=span.session,
        user_hash=about.user_hash,
        kind=PairKind.CONTENT,
        made_at=about.started_at,
        at_tick=span.at_tick,
        event=0,
        policy=about.adapter,
        heldout=False,
        evidence=Evidence(rule=_RULE, signals=(), confidence=1.0),
        context_PK=columns.tokens_TK[: span.at_tick],
        chosen=Side(tokens_TK=said, words=""),
        rejected=Side(tokens_TK=said[:1], words=""),
    )
