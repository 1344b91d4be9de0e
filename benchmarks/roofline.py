"""What this machine can do at most: bytes read and multiply-adds a second, as torch gets them on the same threads."""

import time
from collections.abc import Callable
from typing import Final

import msgspec
import torch

from benchmarks.stock_model import Size

__all__ = ["Machine", "limit_ms", "measure_machine"]

_REPEATS: Final = 60
_MATRIX: Final = 512
_BYTES: Final = 4
"""Of a float32: both sides compute in it."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Rates, the best of many short tries: other programs' turns are in the others."""

    bytes_per_s: float
    """Reading a buffer as large as the model's weights, again and again: from whichever cache it fits in."""
    multiply_adds_per_s: float
    """Of float32 matrices of 512 x 512."""


def measure_machine(size: Size) -> Machine:
    """Measure, for a model of this size."""
    weights = torch.ones(max(size.weights, 1))
    left, right = torch.rand(_MATRIX, _MATRIX), torch.rand(_MATRIX, _MATRIX)
    return Machine(
        bytes_per_s=_BYTES * len(weights) / _best(weights.sum),
        multiply_adds_per_s=_MATRIX**3 / _best(lambda: left @ right),
    )


def limit_ms(size: Size, machine: Machine, *, rows: int, age: int) -> tuple[float, float]:
    """Give the least milliseconds of a frame of `rows` calls that are `age` frames old: for reading, for computing."""
    past = age * size.cache_values
    return (
        1000 * _BYTES * (size.weights + rows * past) / machine.bytes_per_s,
        1000 * rows * (size.multiply_adds + past) / machine.multiply_adds_per_s,
    )


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
