# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""Every row's own adapter, added to what the frozen weights gave: `out += scaling * B (A x)`.

Hu et al., *LoRA*, arXiv 2106.09685, equation 3, unmerged and with one adapter per row, after Chen et al., *Punica*,
arXiv 2310.18547: `shrink` makes `A x` and `expand` adds `B` times it. Adapter 0 is the model as it was loaded: such
rows, and rows that do not move, read no adapter and are not written; nor do rows whose adapter has scaling 0, which
is how an adapter says that it learned nothing here. Adapters of smaller rank are filled with zeros.

Legend: B rows, L adapters, I width in, O width out, R rank.
"""

from typing import Final

import torch
from torch import Tensor

from kernels.checks import expect
from kernels.dialect import constexpr, jit, power_of_two, tl, uses_triton

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "RANKS",
    "lora_delta",
    "lora_delta_reference",
    "lora_expand_kernel",
    "lora_shrink_kernel",
]

RANKS: Final = 8
"""Ranks that one program of `shrink` makes."""
INPUTS: Final = 256
"""Inputs that it reads at a time."""
OUTPUTS: Final = 64
"""Outputs that one program of `expand` adds to."""


def lora_delta_reference(
    x: Tensor, down: Tensor, up: Tensor, scaling: Tensor, adapter: Tensor, moving: Tensor, out: Tensor
) -> None:
    """As `lora_delta`, row by row."""
    for row in (moving & (adapter > 0)).nonzero()[:, 0].tolist():
        which = int(adapter[row]) - 1
        if scaling[which] == 0:
            continue
        delta = up[which].float() @ (down[which].float() @ x[row].float())
        out[row] = (out[row].float() + scaling[which] * delta).to(out.dtype)


@jit
def lora_shrink_kernel(
    x, down, scaling, adapter, moving, inner, WIDTH_IN: constexpr, R: constexpr, BLOCK_R: constexpr, BLOCK_I: constexpr
):
    """One program per (block of ranks, row)."""
    row = tl.program_id(1).to(tl.int64)
    which = tl.load(adapter + row) - 1
    if (which < 0) | (tl.load(moving + row) == 0):
        return
    if tl.load(scaling + which) == 0.0:
        return
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in tl.range(0, WIDTH_IN, BLOCK_I, num_stages=3):
        i = start + tl.arange(0, BLOCK_I)
        mask = (r < R)[:, None] & (i < WIDTH_IN)[None, :]
        weight = tl.load(down + (which * R + r[:, None]) * WIDTH_IN + i[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + row * WIDTH_IN + i, mask=i < WIDTH_IN, other=0.0).to(tl.float32)
        total += tl.sum(weight * value[None, :], axis=1)
    tl.store(inner + row * R + r, total, mask=r < R)


@jit
def lora_expand_kernel(
    inner,
    up,
    scaling,
    adapter,
    moving,
    out,
    WIDTH_OUT: constexpr,
    R: constexpr,
    BLOCK_O: constexpr,
    WIDE: constexpr,
):
    """One program per (block of outputs, row). `WIDE` is R rounded up to a power of two."""
    row = tl.program_id(1).to(tl.int64)
    which = tl.load(adapter + row) - 1
    if (which < 0) | (tl.load(moving + row) == 0):
        return
    scale = tl.load(scaling + which)
    if scale == 0.0:
        return
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    r = tl.arange(0, WIDE)
    mask = (o < WIDTH_OUT)[:, None] & (r < R)[None, :]
    weight = tl.load(up + (which * WIDTH_OUT + o[:, None]) * R + r[None, :], mask=mask, other=0.0).to(tl.float32)
    value = tl.load(inner + row * R + r, mask=r < R, other=0.0)
    delta = tl.sum(weight * value[None, :], axis=1) * scale
    before = tl.load(out + row * WIDTH_OUT + o, mask=o < WIDTH_OUT, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH_OUT + o, (before + delta).to(out.dtype.element_ty), mask=o < WIDTH_OUT)


@torch.library.custom_op("duologue::lora_delta", mutates_args=("inner", "out"))
def lora_delta(
    x: Tensor, down: Tensor, up: Tensor, scaling: Tensor, adapter: Tensor, moving: Tensor, inner: Tensor, out: Tensor
) -> None:
    """Add every moving row's adapter to `out` `[B, O]`.

    `x` `[B, I]`; `down` `[L, R, I]` and `up` `[L, O, R]`, upstream's `lora_A` and `lora_B`; `scaling` float32 `[L]`;
    `adapter` int64 `[B]`, 0 for none and n for the n-th; `moving` bool `[B]`; `inner` float32 `[B, R]` is scratch. All
    contiguous. Raises `ValueError` for shapes that do not belong together.
    """
    _check(x, down, up, scaling, adapter, moving, inner, out)
    if not uses_triton(x):
        lora_delta_reference(x, down, up, scaling, adapter, moving, out)
        return
    rows, width_in = x.shape
    _, width_out, rank = up.shape
    lora_shrink_kernel[(-(-rank // RANKS), rows)](
        x, down, scaling, adapter, moving, inner, WIDTH_IN=width_in, R=rank, BLOCK_R=RANKS, BLOCK_I=INPUTS
    )
    lora_expand_kernel[(-(-width_out // OUTPUTS), rows)](
        inner, up, scaling, adapter, moving, out, WIDTH_OUT=width_out, R=rank, BLOCK_O=OUTPUTS, WIDE=power_of_two(rank)
    )


@lora_delta.register_fake
def _(
    x: Tensor, down: Tensor, up: Tensor, scaling: Tensor, adapter: Tensor, moving: Tensor, inner: Tensor, out: Tensor
) -> None:
    _check(x, down, up, scaling, adapter, moving, inner, out)


def _check(
    x: Tensor, down: Tensor, up: Tensor, scaling: Tensor, adapter: Tensor, moving: Tensor, inner: Tensor, out: Tensor
) -> None:
    rows, width_in = x.shape
    adapters, width_out, rank = up.shape
    expect("x", x, (rows, width_in))
    expect("down", down, (adapters, rank, width_in), up.dtype)
    expect("up", up, (adapters, width_out, rank))
    expect("scaling", scaling, (adapters,), torch.float32)
    expect("adapter", adapter, (rows,), torch.int64)
    expect("moving", moving, (rows,), torch.bool)
    expect("inner", inner, (rows, rank), torch.float32)
    expect("out", out, (rows, width_out))
