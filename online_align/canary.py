"""Whether those who hear the canary complain more than those who do not: a test that may be looked at at any time.

People, not calls, are drawn (`server.adapter_plan.hears_canary`), so people are what is counted: everybody gives one
number, the share of complaints among his first turns, when he has had enough of them or enough time has passed. Between
the two groups' means a mixture sequential probability ratio test is run: under a normal prior of deviation `mixture` on
the difference, the likelihood ratio is a martingale while there is no difference, so it rarely ever exceeds 1 / alpha,
however often somebody looks (Robbins 1970; Johari, Koomen, Pekelis and Walsh 2017, "Peeking at A/B tests"). Its
inversion is an interval that holds at all times at once. The variance is estimated, so the guarantee is asymptotic:
`tests/align/test_canary.py` measures it. It knows no database.

Legend: N looks or experiments, C control, T canary ("treated").
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CanarySettings",
    "Decision",
    "Group",
    "Reading",
    "read",
    "sequential_interval",
    "variance_from",
    "variance_of",
]

_PRIOR_USERS: Final = 4.0
_PRIOR_VARIANCE: Final = 0.05
"""Of users' shares: worth so many users, so that a quiet start, with nobody complaining, is not taken for certainty."""


class Decision(StrEnum):
    """What the numbers say so far."""

    WAIT = "wait"
    PROMOTE = "promote"
    """It is not worse by more than the margin."""
    HARM = "harm"
    """People complain more."""


class CanarySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the test is run. Shares are of turns with a complaint."""

    alpha: float = 0.05
    """Chance of ever leaving the interval, at any look."""
    mixture: float = 0.1
    """Deviation of the differences that one reckons with."""
    margin: float = 0.05
    """By which the share may be higher and the adapter still be promoted."""
    least_users: int = 12
    """In each group."""
    turns: int = 5
    """A person counts after so many turns,"""
    settle_s: float = 24 * 3600.0
    """or so long after the first one: who left at once counts too."""
    longest_s: float = 14 * 24 * 3600.0
    """Without a decision by then there is none, and no promotion."""
    complaint: float = 0.5
    """Least confidence of a label that counts as a complaint."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One share of complaints for each person, in the order in which they came to count."""

    shares: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """Of all."""
        return float(np.mean(self.shares)) if self.shares else None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one look found."""

    decision: Decision
    control_users: int
    canary_users: int
    control: float | None
    canary: float | None
    low: float | None = None
    """Interval of canary less control, valid at all looks at once."""
    high: float | None = None
    p: float = 1.0
    """Always-valid p-value of "no difference" at this look."""

    @property
    def sentence(self) -> str:
        """For a person."""
        if self.control is None or self.canary is None:
            return f"{self.canary_users} people have heard the canary and {self.control_users} have not: too few."
        says = (
            f"{self.canary:.1%} of {self.canary_users} people's turns brought a complaint with the canary and "
            f"{self.control:.1%} of {self.control_users} people's without"
        )
        if self.low is None or self.high is None:
            return f"{says}: too few people."
        meant = {
            Decision.WAIT: "not decided yet",
            Decision.PROMOTE: "not worse",
            Decision.HARM: "people complain more",
        }[self.decision]
        return f"{says}: {meant} (difference {self.low:+.1%} to {self.high:+.1%}, p {self.p:.3g})."


def read(control: Group, canary: Group, settings: CanarySettings) -> Reading:
    """Look once. May be called as often as one likes, with the same people and more."""
    reading = Reading(
        decision=Decision.WAIT,
        control_users=len(control.shares),
        canary_users=len(canary.shares),
        control=control.mean,
        canary=canary.mean,
    )
    if min(reading.control_users, reading.canary_users) < settings.least_users:
        return reading
    difference, variance = _difference(control.shares, canary.shares)
    low, high = sequential_interval(difference, variance, settings)
    decision = Decision.WAIT
    if low > 0:
        decision = Decision.HARM
    elif high < settings.margin:
        decision = Decision.PROMOTE
    p = _p_value(difference, variance, settings)
    return msgspec.structs.replace(reading, decision=decision, low=float(low), high=float(high), p=p)


def sequential_interval(difference: Any, variance: Any, settings: CanarySettings) -> tuple[Any, Any]:
    """The interval of the difference that holds at all looks at once. Arrays `[N]` or numbers.

    `|difference - d|` is kept at the d's for which `sqrt(V / (V + m^2)) exp(m^2 (difference - d)^2 / (2 V (V + m^2)))`
    is below 1 / alpha, with V the variance of the difference and m the mixture's deviation.
    """
    mixed = variance + settings.mixture**2
    reach = np.sqrt(
        2 * variance * mixed / settings.mixture**2 * (math.log(1 / settings.alpha) + 0.5 * np.log(mixed / variance))
    )
    return difference - reach, difference + reach


def _p_value(difference: float, variance: float, settings: CanarySettings) -> float:
    mixed = variance + settings.mixture**2
    log_ratio = 0.5 * math.log(variance / mixed) + settings.mixture**2 * difference**2 / (2 * variance * mixed)
    return min(1.0, math.exp(-log_ratio))


def _difference(control: Sequence[float], canary: Sequence[float]) -> tuple[float, float]:
    c, t = np.array(control), np.array(canary)
    return float(t.mean() - c.mean()), float(variance_of(c) / len(c) + variance_of(t) / len(t))


def variance_of(shares: NDArray[np.floating], axis: int = -1) -> Any:
    """Variance of people's shares along an axis, with the prior's people among them."""
    return variance_from(((shares - shares.mean(axis=axis, keepdims=True)) ** 2).sum(axis=axis), shares.shape[axis])


def variance_from(squares: Any, users: Any) -> Any:
    """The same from the sum of squared deviations of so many people."""
    return (squares + _PRIOR_USERS * _PRIOR_VARIANCE) / (users - 1 + _PRIOR_USERS)
