# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""Attention of one step of the depth transformer: append one key and value, look at no more than 8 or so.

The depth transformer speaks one frame's codebooks one after another and starts afresh in each frame, so its position is
the codebook, the same for every row, and known when the step is written down. There is no RoPE. One program does one
row's head: it writes the new position, reads the ones before it, and takes the new one from registers.

Rows that do not move are neither read nor written; their output is zero.

Legend: B rows, H heads, D width of a head, S positions of a frame.
"""

import math
from typing import Final

import torch
from torch import Tensor

from kernels.checks import expect
from kernels.dialect import constexpr, jit, power_of_two, tl, uses_triton

__all__ = ["WARPS", "depth_attention", "depth_attention_kernel", "depth_attention_reference"]

WARPS: Final = 1


def depth_attention_reference(qkv: Tensor, k: Tensor, v: Tensor, position: int, moving: Tensor) -> Tensor:
    """As `depth_attention`; returns float32 `[B, H, D]`."""
    k[moving, :, position] = qkv[moving, 1].to(k.dtype)
    v[moving, :, position] = qkv[moving, 2].to(v.dtype)
    out = torch.zeros(qkv.shape[0], *qkv.shape[2:], device=qkv.device)
    keys, values = (cache[moving, :, : position + 1].float() for cache in (k, v))
    scores = torch.einsum("bhd,bhsd->bhs", qkv[moving, 0].float(), keys) / math.sqrt(qkv.shape[-1])
    out[moving] = torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), values)
    return out


@jit
def depth_attention_kernel(
    qkv, k, v, moving, out, position, scale, H: constexpr, D: constexpr, S: constexpr, WIDE: constexpr, DEEP: constexpr
):
    """`WIDE` and `DEEP` are D and S rounded up to powers of two; `scale` is log2(e) / sqrt(D)."""
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, WIDE)
    s = tl.arange(0, DEEP)
    inside = d < D
    to = out + (row * H + head) * D + d
    if tl.load(moving + row) == 0:
        tl.store(to, tl.zeros([WIDE], tl.float32).to(out.dtype.element_ty), mask=inside)
        return
    given = qkv + (row * 3 * H + head) * D + d
    q = tl.load(given, mask=inside, other=0.0).to(tl.float32) * scale
    new_k = tl.load(given + H * D, mask=inside, other=0.0).to(tl.float32).to(k.dtype.element_ty)
    new_v = tl.load(given + 2 * H * D, mask=inside, other=0.0).to(tl.float32).to(v.dtype.element_ty)
    cache = (row * H + head) * S * D
    tl.store(k + cache + position * D + d, new_k, mask=inside)
    tl.store(v + cache + position * D + d, new_v, mask=inside)

    place = cache + s[:, None] * D + d[None, :]
    earlier = (s < position)[:, None] & inside[None, :]
    keys = tl.load(k + place, mask=earlier, other=0.0).to(tl.float32)
    values = tl.load(v + place, mask=earlier, other=0.0).to(tl.float32)
    latest = (s == position)[:, None]
    keys = tl.where(latest, new_k.to(tl.float32)[None, :], keys)
    values = tl.where(latest, new_v.to(tl.float32)[None, :], values)
    score = tl.where(s <= position, tl.sum(q[None, :] * keys, axis=1), float("-inf"))
    share = tl.exp2(score - tl.max(score, axis=0))
    mean = tl.sum(share[:, None] * values, axis=0) / tl.sum(share, axis=0)
    tl.store(to, mean.to(out.dtype.element_ty), mask=inside)


@torch.library.custom_op("duologue::depth_attention", mutates_args=("k", "v", "out"))
def depth_attention(qkv: Tensor, k: Tensor, v: Tensor, position: int, moving: Tensor, out: Tensor) -> None:
    """Write position `position` of every moving row, and attend to it and all before it.

    `qkv` `[B, 3, H, D]`; `k`, `v` `[B, H, S, D]`, where the positions before `position` were written in this frame;
    `moving` bool `[B]`; `out` `[B, H, D]`. All contiguous, of any float types.
    Raises `ValueError` for shapes that do not belong together and a position that is not there.
    """
    _check(qkv, k, v, position, moving, out)
    if not uses_triton(qkv):
        out.copy_(depth_attention_reference(qkv, k, v, position, moving))
        return
    rows, _, heads, width = qkv.shape
    slots = k.shape[2]
    depth_attention_kernel[(heads, rows)](
        qkv, k, v, moving, out, position, math.log2(math.e) / math.sqrt(width),
        H=heads, D=width, S=slots, WIDE=power_of_two(width), DEEP=power_of_two(slots), num_warps=WARPS,
    )  # fmt: skip


@depth_attention.register_fake
def _(qkv: Tensor, k: Tensor, v: Tensor, position: int, moving: Tensor, out: Tensor) -> None:
    _check(qkv, k, v, position, moving, out)


def _check(qkv: Tensor, k: Tensor, v: Tensor, position: int, moving: Tensor, out: Tensor) -> None:
    rows, parts, heads, width = qkv.shape
    slots = k.shape[2]
    if parts != 3 or not 0 <= position < slots:
        raise ValueError(f"qkv is {list(qkv.shape)} at position {position}; expected [B, 3, H, D] and 0 to {slots - 1}")
    expect("qkv", qkv, (rows, parts, heads, width))
    expect("k", k, (rows, heads, slots, width))
    expect("v", v, (rows, heads, slots, width), k.dtype)
    expect("moving", moving, (rows,), torch.bool)
    expect("out", out, (rows, heads, width))
