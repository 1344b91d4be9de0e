"""How sure a figure of the signals is: 95 % intervals of F1 scores and of percentiles. It knows counts, not sound."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from online_align.evaluate.mini import wilson

__all__ = ["f1_interval", "percentile_interval"]

_DRAWS: Final = 2000
_TAILS: Final = (2.5, 97.5)


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
