"""Triton's interpreter as a test bench: programs in any order, and memory whose every wrong touch shows.

The stock interpreter runs the programs of a launch in one fixed order, so a program that reads what another has just
written goes unnoticed. `permuted` draws a new order for each launch.
"""

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

interpreter: Any = pytest.importorskip("triton.runtime.interpreter", reason="Triton is not installed")

_BAND = 64
_POISON = 77
_patched: set[Any] = set()
_patch_language = interpreter._patch_lang


def _patch_once(function: Any) -> Any:
    """The interpreter patches the language anew in every call of every helper; once is enough, and 5 times faster."""
    language = (interpreter.tl, interpreter.tl.core)
    seen = {value for value in function.__globals__.values() if inspect.ismodule(value) and value in language}
    if not seen <= _patched:
        _patch_language(function)
        _patched.update(seen)
    return interpreter._LangPatchScope()


interpreter._patch_lang = _patch_once


@contextmanager
def permuted(seed: int) -> Iterator[None]:
    """Run the programs of every launch inside in a random order of its own."""
    builder = interpreter.InterpreterBuilder
    plain = builder.set_grid_idx
    draw = random.Random(seed)

    def set_grid_dim(self: Any, *size: int) -> None:
        self.grid_dim = size
        self.order = list(range(size[0] * size[1] * size[2]))
        draw.shuffle(self.order)

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        _, ny, nz = self.grid_dim
        place = self.order[(x * ny + y) * nz + z]
        plain(self, place // (ny * nz), place // nz % ny, place % nz)

    plain_dim = builder.set_grid_dim
    builder.set_grid_dim, builder.set_grid_idx = set_grid_dim, set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_dim, builder.set_grid_idx = plain_dim, plain


@contextmanager
def in_order() -> Iterator[None]:
    """Run the programs as the stock interpreter does, whatever is round this block."""
    builder = interpreter.InterpreterBuilder
    index = builder.set_grid_idx

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        self.grid_idx = (x, y, z)

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_idx = index


class Guarded:
    """A tensor full of poison, with more of it on both sides. Poison is NaN, or 77 in types that have no NaN."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self._poison = torch.nan if dtype.is_floating_point else _POISON
        size = torch.Size(shape).numel()
        self._memory = torch.full((size + 2 * _BAND,), self._poison, dtype=dtype)
        self.tensor: Tensor = self._memory[_BAND : _BAND + size].view(shape)

    def check(self) -> None:
        """Fail if anything round the tensor was written."""
        for band in (self._memory[:_BAND], self._memory[-_BAND:]):
            assert is_poison(band).all()


def is_poison(tensor: Tensor) -> Tensor:
    """Where nothing was ever written."""
    return tensor.isnan() if tensor.dtype.is_floating_point else tensor == _POISON


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN included."""
    return torch.equal(torch.nan_to_num(one, nan=12345.0), torch.nan_to_num(other, nan=12345.0))
