"""How sure a figure is: 95 % intervals of shares, F1 scores and percentiles. It knows counts, not sound."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from benchmarks.report import Row, compare

__all__ = ["f1_interval", "percentile_interval", "share", "wilson"]

_DRAWS: Final = 2000
_TAILS: Final = (2.5, 97.5)
_Z: Final = 1.959964


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    p, z = hits / total, _Z
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * np.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def share(name: str, found: Iterable[bool], *, goal: float | None = None, at_most: bool = False) -> Row:
    """A row with a share, its counts and its interval."""
    each = list(found)
    low, high = wilson(sum(each), len(each))
    return compare(
        name,
        sum(each) / len(each) if each else None,
        "share",
        better="lower" if at_most else "higher",
        goal=goal,
        remark=f"{sum(each)} of {len(each)}, 95 % interval {low:.3f} to {high:.3f}",
    )


def f1_interval(found: int, missed: int, false: int) -> tuple[float, float]:
    """The 95 % interval of an F1 score.

    F1 is 2 J / (1 + J) of J = found / (found + missed + false), which is a share: its interval is Wilson's. That holds
    for 28 of 28, too, where a bootstrap would know of no doubt.
    """
    low, high = wilson(found, found + missed + false)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def percentile_interval(values: Sequence[float], percentile: float) -> tuple[float, float]:
    """The 95 % bootstrap interval of a percentile of independent values (Efron 1979); `values` must not be empty."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(values, np.float64), (_DRAWS, len(values)))
    low, high = np.percentile(np.percentile(drawn, percentile, axis=1), _TAILS)
    return float(low), float(high)
