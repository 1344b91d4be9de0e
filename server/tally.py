"""Counting on the way of a frame: plain numbers, made into Prometheus' families only when somebody asks.

`prometheus_client` takes a lock and 2 to 3 µs for every observation, a dozen of them for each caller's frame; a cell
takes a fifth of that. The price: every cell belongs to one thread, the event loop, which alone may change it. Reading
from another thread gives figures that are at most one observation apart.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from enum import StrEnum

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["Cell", "TallyCounter", "TallyHistogram"]

_INFINITE = "+Inf"


class Cell:
    """One series of a histogram: counts by upper bound, and the sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self.counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value, in the unit of the bounds."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Give upper bounds, as Prometheus writes them, and how many values were at most so large."""
        names = [*map(floatToGoString, self._bounds), _INFINITE]
        sums, so_far = [], 0
        for name, count in zip(names, self.counts, strict=True):
            so_far += count
            sums.append((name, float(so_far)))
        return sums


class TallyHistogram(Collector):
    """A histogram with one closed label, or with none. `cells` has a cell for each value, "" for no label."""

    def __init__(
        self, name: str, what: str, bounds: Sequence[float], *, label: str = "", values: Sequence[StrEnum] = ()
    ) -> None:
        self._name, self._what, self._label = name, what, label
        self._below_zero = bounds[0] < 0
        self.cells: dict[str, Cell] = {value: Cell(bounds) for value in values} if label else {"": Cell(bounds)}

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the family as it is now. Values below 0 have no `_sum`: it could fall, which Prometheus forbids."""
        family = HistogramMetricFamily(self._name, self._what, labels=[self._label] if self._label else [])
        for value, cell in self.cells.items():
            labels = [value] if self._label else []
            buckets = cell.cumulative()
            family.add_metric(labels, buckets, sum_value=cell.total)
            if self._below_zero:
                named = {self._label: value} if self._label else {}
                family.add_sample(f"{self._name}_count", named, buckets[-1][1])
        yield family


class TallyCounter(Collector):
    """A counter with one closed label."""

    def __init__(self, name: str, what: str, *, label: str, values: Sequence[StrEnum]) -> None:
        self._name, self._what, self._label = name, what, label
        self.counts: dict[str, int] = dict.fromkeys(values, 0)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give the family as it is now."""
        family = CounterMetricFamily(self._name, self._what, labels=[self._label])
        for value, count in self.counts.items():
            family.add_metric([value], count)
        yield family
