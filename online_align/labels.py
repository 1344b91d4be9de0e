"""Which of the things that happened in a call are complaints, which are praise, and how sure that is.

Signals are facts; this is opinion, so it has a version that every pair names. `docs/labels.md` says what counts and
why, with the literature. Whoever changes a rule or a number changes `RULES`. It knows no model and no tokens.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from online_align.conversation import Conversation, Turn
from online_align.records import PairKind
from server.signals import Signal, SignalKind, State

__all__ = ["DEFAULT_LIMITS", "RULES", "Label", "Limits", "Opinion", "label"]

RULES: Final = "labels-1"


class Opinion(StrEnum):
    """What somebody's behaviour says of the model's."""

    COMPLAINT = "complaint"
    PRAISE = "praise"
    NEUTRAL = "neutral"
    """Seen, and not held against anybody: it may mean either."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Every number of the rules. Seconds; confidences from 0 to 1."""

    speaks_again_s: float = 8.0
    """A caller who speaks so soon after an unanswered turn has been waiting."""
    upset_s: float = 12.0
    """A complaint so soon after a fault of timing is about that fault."""
    feedback_reach_s: float = 20.0
    """A vote is about what was said at most so long ago."""
    prompt_s: float = 1.5
    """An answer that comes later is no praise for its timing."""

    cut_off: float = 0.75
    """Confidence in a complaint, times that of the signal: 1 would be a caller who says so."""
    pause_takeover: float = 0.8
    no_yield: float = 0.8
    no_response_asked_again: float = 0.95
    no_response_hung_up: float = 0.6
    no_response_alone: float = 0.35
    """Silence may be thinking, a muted microphone, or a dropped link."""
    down: float = 0.9
    up: float = 0.9
    repeat: float = 0.75
    """Times how alike the two turns are."""
    went_on: float = 0.6
    upset: float = 0.15
    """Added to a complaint about timing when the caller complains of the same in another way."""
    neutral: float = 0.5


DEFAULT_LIMITS: Final = Limits()


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """One opinion about one span of a call."""

    opinion: Opinion
    rule: str
    """Version and name of the rule."""
    kind: PairKind | None
    """What was wrong, or right; None where that cannot be said."""
    t0: float
    t1: float
    """Seconds of the call; for a complaint, from the fault to where the caller's turn that suffered from it ended."""
    signals: tuple[int, ...]
    """Numbers of the signals it rests on; empty for what only words tell."""
    confidence: float


def label(call: Conversation, limits: Limits = DEFAULT_LIMITS) -> list[Label]:
    """Judge a call by all rules, in order of time. Signals that were never settled, as after a crash, do not count."""
    signals = [signal for signal in call.signals if signal.state is State.FINAL]
    timing = [*_early(signals, limits), *_silent(call, signals, limits), *_not_yielding(signals, limits)]
    timing = _without_repetition(timing)
    wording, upset = _about_words(call, signals, timing, limits)
    complaints = [_surer(each, limits.upset) if each in upset else each for each in timing] + wording
    praise = [*_thanked(call, signals, limits), *_accepted(call, signals, complaints, limits)]
    return sorted([*complaints, *praise, *_undecided(signals, limits)], key=lambda each: (each.t0, each.rule))


def _complaint(name: str, kind: PairKind, span: tuple[float, float], signals: Sequence[Signal], sure: float) -> Label:
    return Label(
        opinion=Opinion.COMPLAINT, rule=f"{RULES}/{name}", kind=kind, t0=span[0], t1=span[1],
        signals=tuple(signal.id for signal in signals), confidence=round(min(1.0, sure), 3),
    )  # fmt: skip


def _early(signals: Sequence[Signal], limits: Limits) -> Iterator[Label]:
    """The model began before the caller had ended, who went on: the signals are only given where he did."""
    weight = {SignalKind.CUT_OFF: limits.cut_off, SignalKind.PAUSE_TAKEOVER: limits.pause_takeover}
    for signal in signals:
        if signal.kind in weight:
            sure = weight[signal.kind] * signal.confidence
            yield _complaint(signal.kind.value, PairKind.CUT_OFF, (signal.t0, signal.t1), [signal], sure)


def _silent(call: Conversation, signals: Sequence[Signal], limits: Limits) -> Iterator[Label]:
    """The model did not answer; whether that was a fault shows in what the caller did next."""
    for signal in signals:
        if signal.kind is not SignalKind.NO_RESPONSE:
            continue
        again = call.next_user(signal.t0)
        asked_again = again is not None and again.t0 - signal.t0 <= limits.speaks_again_s
        if asked_again and call.reply_before(again.t0 if again else 0.0) not in (None, call.reply_before(signal.t0)):
            continue  # it did answer, late
        hung_up = call.hung_up and again is None and call.end_s - signal.t0 <= limits.speaks_again_s
        sure = limits.no_response_alone
        if asked_again:
            sure = limits.no_response_asked_again
        elif hung_up:
            sure = limits.no_response_hung_up
        name = "no_response_asked_again" if asked_again else "no_response"
        span = signal.t0, again.t0 if asked_again and again else signal.t1
        yield _complaint(name, PairKind.NO_RESPONSE, span, [signal], sure * signal.confidence)


def _not_yielding(signals: Sequence[Signal], limits: Limits) -> Iterator[Label]:
    """The model talked on over a caller who cut in and went on himself."""
    by_id = {signal.id: signal for signal in signals}
    for signal in signals:
        barge_in = by_id.get(signal.of or 0)
        if signal.kind is SignalKind.NO_YIELD and barge_in is not None and barge_in.kind is SignalKind.BARGE_IN:
            sure = limits.no_yield * signal.confidence * barge_in.confidence
            yield _complaint("no_yield", PairKind.NO_YIELD, (barge_in.t0, barge_in.t1), [barge_in, signal], sure)


def _without_repetition(labels: list[Label]) -> list[Label]:
    """One fault may give two signals (a cut-off and, as the model talks on, a no-yield): the first one counts."""
    kept: list[Label] = []
    for each in sorted(labels, key=lambda each: each.t0):
        if not any(other.t0 <= each.t0 < other.t1 for other in kept):
            kept.append(each)
    return kept


def _about_words(
    call: Conversation, signals: Sequence[Signal], timing: Sequence[Label], limits: Limits
) -> tuple[list[Label], list[Label]]:
    """Complaints about what was said, and those about timing that the caller's anger turned out to be about."""
    found: list[Label] = []
    upset: list[Label] = []
    for name, at_s, evidence, sure in [*_down_votes(signals, limits), *_repeats(call, signals, limits)]:
        guilty = [each for each in timing if each.t0 <= at_s <= each.t1 + limits.upset_s]
        reply = call.reply_before(at_s)
        asked = call.asked_before(reply.t0) if reply else None
        if guilty:
            upset.append(guilty[-1])
            continue
        known = any(reply is not None and reply.t0 == each.t0 for each in found)
        if reply and asked and not known and at_s - reply.t1 <= limits.feedback_reach_s:
            found.append(_complaint(name, PairKind.CONTENT, (reply.t0, reply.t1), evidence, sure))
    return found, upset


def _down_votes(signals: Sequence[Signal], limits: Limits) -> Iterator[tuple[str, float, Sequence[Signal], float]]:
    for signal in signals:
        if signal.kind is SignalKind.FEEDBACK and signal.value == "down":
            yield "down", signal.t0, [signal], limits.down * signal.confidence


def _repeats(
    call: Conversation, signals: Sequence[Signal], limits: Limits
) -> Iterator[tuple[str, float, Sequence[Signal], float]]:
    """Nearly the same words again, with a reply in between that seems not to have helped."""
    for signal in signals:
        if signal.kind is SignalKind.REPEAT:
            said_first = signal.t0 - (signal.latency_s or 0.0)
            reply = call.reply_before(signal.t0)
            if reply is not None and reply.t1 > said_first:
                yield "repeat", signal.t0, [signal], limits.repeat * signal.confidence


def _surer(complaint: Label, by: float) -> Label:
    return msgspec.structs.replace(complaint, confidence=round(min(1.0, complaint.confidence + by), 3))


def _praise(name: str, reply: Turn, signals: Sequence[Signal], sure: float) -> Label:
    return Label(
        opinion=Opinion.PRAISE, rule=f"{RULES}/{name}", kind=None, t0=reply.t0, t1=reply.t1,
        signals=tuple(signal.id for signal in signals), confidence=round(sure, 3),
    )  # fmt: skip


def _thanked(call: Conversation, signals: Sequence[Signal], limits: Limits) -> Iterator[Label]:
    for signal in signals:
        if signal.kind is SignalKind.FEEDBACK and signal.value == "up":
            reply = call.reply_before(signal.t0)
            if reply is not None and signal.t0 - reply.t1 <= limits.feedback_reach_s:
                yield _praise("up", reply, [signal], limits.up * signal.confidence)


def _accepted(
    call: Conversation, signals: Sequence[Signal], complaints: Sequence[Label], limits: Limits
) -> Iterator[Label]:
    """A prompt answer after which the caller, having heard it out, goes on with something else."""
    for signal in signals:
        if signal.kind is not SignalKind.RESPONSE or abs(signal.latency_s or 0.0) > limits.prompt_s:
            continue
        reply = call.reply_before(signal.t1 + limits.prompt_s)
        goes_on = call.next_user(reply.t1) if reply else None
        if reply is None or goes_on is None or call.next_user(reply.t0) is not goes_on:
            continue
        if not any(each.t0 < goes_on.t0 and each.t1 > signal.t0 for each in complaints):
            yield _praise("went_on", reply, [signal], limits.went_on * signal.confidence)


def _undecided(signals: Sequence[Signal], limits: Limits) -> Iterator[Label]:
    """What may mean either: eagerness, agreement, a third person, a call that was simply over."""
    either = {SignalKind.BARGE_IN, SignalKind.BACKCHANNEL, SignalKind.HANG_UP, SignalKind.MONOLOGUE, SignalKind.YIELD}
    for signal in signals:
        if signal.kind in either:
            yield Label(
                opinion=Opinion.NEUTRAL, rule=f"{RULES}/{signal.kind}", kind=None, t0=signal.t0, t1=signal.t1,
                signals=(signal.id,), confidence=limits.neutral,
            )  # fmt: skip
