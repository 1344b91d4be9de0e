"""The gate's limits on behaviour, drift and people's preferences: each a line of data, and how a line is judged.

Every limit on behaviour is against the base model on the same calls: a model that is slow to begin with is not refused
for that, but none may become worse. Why each is there is in `docs/gate.md`. It knows no files.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from online_align.probes import Agreement, Drift, Measure, Recorded
from online_align.verdicts import Check, Outcome

__all__ = [
    "BY_CHANCE",
    "LIMITS",
    "DriftLimits",
    "HeldoutLimits",
    "Limit",
    "RecordedLimits",
    "Side",
    "check_behaviour",
    "check_drift",
    "check_heldout",
    "check_recorded",
]


BY_CHANCE: Final = 0.05
"""A share over the same calls must be worse by more than its limit and than this chance explains."""


class Side(StrEnum):
    """On which side of the base a number may not leave the limit."""

    ABOVE = "above"
    BELOW = "below"
    BOTH = "both"


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How far a number may be from the base model's: `slack` in its unit plus `part` of the base's value."""

    measure: str
    side: Side
    slack: float
    part: float = 0.0
    harm: str
    """What is wrong when it is left, as the end of a sentence: "it ..."."""
    strict: bool = False
    """Left is left, however few calls there are."""


def _most(measure: str, slack: float, harm: str, part: float = 0.0) -> Limit:
    return Limit(measure=measure, side=Side.ABOVE, slack=slack, part=part, harm=harm)


def _least(measure: str, slack: float, harm: str, part: float = 0.0) -> Limit:
    return Limit(measure=measure, side=Side.BELOW, slack=slack, part=part, harm=harm)


LIMITS: Final = (
    _least("answered", 0.08, "leaves people without an answer"),
    _least("right", 0.05, "gives fewer right answers"),
    _most("began_early", 0.05, "begins before people have ended"),
    _most("gap_p50_s", 0.16, "lets people wait longer"),
    _most("gap_p90_s", 0.40, "lets some people wait much longer"),
    Limit(measure="speech_s", side=Side.BOTH, slack=0.0, part=0.15, harm="talks more or less than it did"),
    _most("stretches", 0.10, "speaks in bursts", part=0.25),
    _least("stretch_s", 0.10, "speaks in short bursts", part=0.25),
    _most("question_endings", 0.05, "ends its replies with questions"),
    _most("repeating", 0.05, "says the same words again"),
    _least("distinct", 0.02, "gives different questions the same answer", part=0.20),
    _most("pauses_taken", 0.06, "takes the turn in people's pauses"),
    _least("right_after_pause", 0.08, "no longer answers those who paused"),
    _most("yield_s", 0.40, "talks on when people cut in"),
    _least("right_after_interruption", 0.10, "no longer answers what people cut in with"),
    _least("told_on_through_hum", 0.13, "falls silent when people hum along"),
    Limit(measure="spoke_to_nobody", side=Side.ABOVE, slack=0.05, harm="speaks when nobody is there", strict=True),
    _most("sound_without_words", 0.03, "makes sounds without words"),
)


class DriftLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far the text distribution may move, on calls in which nothing was wrong."""

    kl: float = 0.10
    """Nats a frame, mean."""
    entropy_low: float = 0.6
    """Of the base's entropy, as CLaaS has it; below, it repeats itself."""
    entropy_high: float = 3.0
    entropy_floor: float = 0.05
    """Nats that are added to both: a model that is nearly sure of everything has no ratio."""
    logprob: float = 2.0
    """Nats by which the mean log-probability of the base's own words may change, as CLaaS has it."""


class HeldoutLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What people's held-out pairs must say."""

    people: int = 5
    pairs: int = 20
    share: float = 0.5
    """The interval of the preferred share must lie above this: better than a coin."""


class RecordedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What people's recorded calls must say, played on by both."""

    moments: int = 12
    """Fewer of a sort say nothing."""
    faults: Limit = _most("recorded_faults", 0.05, "does again more often what people complained about")
    answers: Limit = _least("recorded_answers", 0.08, "no longer answers people whom the base model answers")


def check_behaviour(
    base: Mapping[str, Measure], with_adapter: Mapping[str, Measure], limits: tuple[Limit, ...] = LIMITS
) -> list[Check]:
    """One check for each limit."""
    return [_within(limit, base[limit.measure], with_adapter[limit.measure]) for limit in limits]


def _within(limit: Limit, base: Measure, found: Measure) -> Check:
    if base.value is None or found.value is None:
        who = "the base model" if base.value is None else "the adapter"
        reason = f"{limit.measure} cannot be counted: {who} gave nothing to count."
        return Check(name=limit.measure, outcome=Outcome.UNKNOWN, reason=reason, value=found.value, base=base.value)
    room = limit.slack + limit.part * abs(base.value)
    low, high = base.value - room, base.value + room
    too_low = limit.side is not Side.ABOVE and found.value < low
    too_high = limit.side is not Side.BELOW and found.value > high
    words = {
        Side.ABOVE: f"at most {high:.3g}",
        Side.BELOW: f"at least {low:.3g}",
        Side.BOTH: f"{low:.3g} to {high:.3g}",
    }
    chance = _by_chance(limit.side, base, found)
    failed = (too_low or too_high) and (limit.strict or chance is None or chance <= BY_CHANCE)
    numbers = (
        f"{limit.measure} is {found.value:.3g} {_unit(found.unit)}(base {base.value:.3g}, limit {words[limit.side]})"
    )
    return Check(
        name=limit.measure,
        outcome=Outcome.FAILED if failed else Outcome.PASSED,
        reason=f"It {limit.harm}: {numbers}." if failed else f"{numbers[0].upper()}{numbers[1:]}.",
        value=found.value,
        base=base.value,
        limit=words[limit.side],
        figures={"of": found.of, "of_base": base.of, "by_chance": chance},
    )


def _by_chance(side: Side, base: Measure, found: Measure) -> float | None:
    """Chance of so many calls getting worse among those that changed, if either way were as likely: a sign test.

    None where calls cannot be compared one by one.
    """
    if not base.each or len(base.each) != len(found.each):
        return None
    bad = side is Side.ABOVE
    worse = sum(new == bad != old for old, new in zip(base.each, found.each, strict=True))
    changed = sum(new != old for old, new in zip(base.each, found.each, strict=True))
    return float(sum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2**changed)


def check_drift(found: Drift, limits: DriftLimits) -> list[Check]:
    """The distance to the base model, and the alarms for collapse."""
    ratio = (found.entropy + limits.entropy_floor) / (found.entropy_first + limits.entropy_floor)
    more: dict[str, float | None] = {"kl_p99": found.kl_p99, "frames": float(found.frames)}
    return [
        _at_most("kl", found.kl, limits.kl, "is far from the base model", "nats a frame", more),
        _at_most(
            "logprob_change", abs(found.logprob_change), limits.logprob, "has left the base model's words", "nats"
        ),
        Check(
            name="entropy",
            outcome=Outcome.PASSED if limits.entropy_low <= ratio <= limits.entropy_high else Outcome.FAILED,
            reason=f"Its choice of words has {ratio:.2f} times the base model's entropy.",
            value=found.entropy,
            base=found.entropy_first,
            limit=f"{limits.entropy_low} to {limits.entropy_high} times the base's",
        ),
    ]


def _at_most(
    name: str, value: float, limit: float, harm: str, unit: str, more: dict[str, float | None] | None = None
) -> Check:
    failed = not value <= limit
    numbers = f"{name} is {value:.3g} {unit} (limit {limit:.3g})"
    return Check(
        name=name,
        outcome=Outcome.FAILED if failed else Outcome.PASSED,
        reason=f"It {harm}: {numbers}." if failed else f"{numbers[0].upper()}{numbers[1:]}.",
        value=value,
        limit=f"at most {limit:.3g}",
        figures=more or {},
    )


def check_heldout(found: Agreement, limits: HeldoutLimits) -> Check:
    """Whether people it did not learn from prefer it. Too few of them are no evidence, and it says so."""
    name = "heldout_preferences"
    figures: dict[str, float | None] = {"pairs": found.pairs, "people": found.people, "low": found.low}
    figures |= {"high": found.high} | {f"kind_{kind}": share for kind, share in found.by_kind.items()}
    if found.people < limits.people or found.pairs < limits.pairs or found.low is None or found.share is None:
        reason = (
            f"{found.pairs} held-out pairs of {found.people} people are too few (at least {limits.pairs} of "
            f"{limits.people}): nothing says yet whether others than those it learned from prefer it."
        )
        return Check(name=name, outcome=Outcome.UNKNOWN, reason=reason, value=found.share, figures=figures)
    numbers = (
        f"{found.share:.0%} of {found.people} people's held-out pairs are won "
        f"(95 % interval {found.low:.0%} to {found.high or 0:.0%}, of {found.pairs} pairs)"
    )
    failed = found.low <= limits.share
    return Check(
        name=name,
        outcome=Outcome.FAILED if failed else Outcome.PASSED,
        reason=f"It is not shown to be what other people prefer: {numbers}." if failed else f"{numbers}.",
        value=found.share,
        limit=f"an interval above {limits.share:.0%}",
        figures=figures,
    )


def check_recorded(base: Recorded, found: Recorded, limits: RecordedLimits) -> list[Check]:
    """Recorded calls played on by both; with too few moments nothing is known, and that is said."""
    kinds: dict[str, float | None] = {f"kind_{kind}": share for kind, share in found.by_kind.items()}
    kinds |= {f"kind_{kind}_base": share for kind, share in base.by_kind.items()}
    checks = [
        _recorded(limits.faults, base.faults, found.faults, limits.moments),
        _recorded(limits.answers, base.answers, found.answers, limits.moments),
    ]
    return [msgspec.structs.replace(checks[0], figures=checks[0].figures | kinds), checks[1]]


def _recorded(limit: Limit, base: Measure, found: Measure, least: int) -> Check:
    if found.of >= least:
        return _within(limit, base, found)
    return Check(
        name=limit.measure,
        outcome=Outcome.UNKNOWN,
        reason=(
            f"{found.of} moments of recorded calls that it did not learn from are too few (at least {least}) to tell "
            f"whether it {limit.harm}."
        ),
        value=found.value,
        base=base.value,
        figures={"of": float(found.of)},
    )


def _unit(unit: str) -> str:
    return "s " if unit == "s" else ""
