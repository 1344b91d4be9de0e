# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""Merge what the splits of one attention found: weighted means and the logarithms of their weights.

The pair (mean, log-sum-exp) is closed under merging (Ye et al., *FlashInfer*, 2025, section 2.2), so any number of
splits gives the softmax over everything. Logarithms are in base 2. A split without weight (minus infinity) has nothing
to say, and its mean is not even read.

Legend: B rows, T positions, H heads, D width of a head, P splits.
"""

import math

import torch
from torch import Tensor

from kernels.checks import expect
from kernels.dialect import constexpr, jit, power_of_two, tl, uses_triton

__all__ = ["combine", "combine_kernel", "combine_reference"]


def combine_reference(partial: Tensor, weight: Tensor, moving: Tensor) -> Tensor:
    """Merge splits: float32 `[B, T, H, D]`, zeros in rows that do not move. A split without weight is not read."""
    seen = weight > -torch.inf
    share = torch.where(seen, weight, -torch.inf).mul(math.log(2.0)).softmax(dim=2)
    parts = torch.where(seen[..., None], partial, 0.0) * share[..., None]
    return torch.where(moving[:, None, None, None], parts.sum(dim=2), 0.0).transpose(1, 2)


@jit
def combine_kernel(
    partial,
    weight,
    moving,
    out,
    T: constexpr,
    H: constexpr,
    D: constexpr,
    P: constexpr,
    WIDE: constexpr,
):
    """One program per (position, head, row). `P` is a power of two."""
    time = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, WIDE)
    to = out + ((row * T + time) * H + head) * D + d
    if tl.load(moving + row) == 0:
        tl.store(to, tl.zeros([WIDE], tl.float32).to(out.dtype.element_ty), mask=d < D)
        return
    at = ((row * H + head) * P + tl.arange(0, P)) * T + time
    logs = tl.load(weight + at)
    some = logs > float("-inf")
    share = tl.exp2(logs - tl.max(logs, axis=0))
    mask = some[:, None] & (d < D)[None, :]
    parts = tl.load(partial + at[:, None] * D + d[None, :], mask=mask, other=0.0)
    mean = tl.sum(share[:, None] * parts, axis=0) / tl.sum(share, axis=0)
    tl.store(to, mean.to(out.dtype.element_ty), mask=d < D)


@torch.library.custom_op("duologue::combine", mutates_args=("out",))
def combine(partial: Tensor, weight: Tensor, moving: Tensor, out: Tensor) -> None:
    """Merge what `ring_decode` left in `partial` and `weight` into `out` `[B, T, H, D]`, contiguous, of any float type.

    Rows that do not move get zeros and are not read.
    """
    if not uses_triton(partial):
        out.copy_(combine_reference(partial, weight, moving))
        return
    rows, heads, splits, times, width = partial.shape
    combine_kernel[(times, heads, rows)](
        partial, weight, moving, out, T=times, H=heads, D=width, P=splits, WIDE=power_of_two(width)
    )


@combine.register_fake
def _(partial: Tensor, weight: Tensor, moving: Tensor, out: Tensor) -> None:  # noqa: ARG001 - the same signature
    rows, heads, _, times, width = partial.shape
    expect("out", out, (rows, times, heads, width))
