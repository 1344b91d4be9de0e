# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""Attention of one streaming step over a ring of keys and values: RoPE, the ring's write and the reading in one pass.

A row that has taken `offset` positions has the newest `min(offset, S)` of them in its ring, position p in slot
`p mod S`. A step brings T new positions (1 for a language model, 2 for a codec at twice the frame rate). They overwrite
the T oldest slots, so each query sees what the ring holds after that write: the old positions that are left, and the
new ones up to its own. This is what `moshi.modules.transformer.StreamingMultiheadAttention` computes.

What makes it cheap, and safe:

- Only slots that were written are read, so a call costs what its age costs and not what the context would.
- One program per (row, head, split) gives a partial result and its log-sum-exp; `combine` merges them (Dao et al.,
  *Flash-Decoding*, 2023). The number of splits is fixed and each row's ranges depend on its own age alone, so a row's
  bits never depend on who shares the batch, and the grid never changes: a CUDA graph can hold it.
- The new positions come from registers: split 0 writes them and nobody reads them from memory in the same step, so no
  program depends on the order in which programs run.
- Keys are stored de-interleaved (first all real parts of RoPE's pairs, then all imaginary ones). Scores do not change
  under a common permutation, and nothing is ever interleaved again.
- The cosines and sines come ready from `rope_table`, once a step for all layers.
- An int8 ring keeps one scale per (slot, head): absmax / 127. A key's scale multiplies its score and a value's its
  probability, so nothing is dequantised element by element.
- Rows that do not move are neither read nor written; their output is zero.

Numbers are float32 inside; a new key and value count as what the ring will hold of them.

Legend: B rows, T new positions, H heads, D width of a head, S ring slots, P splits.
"""

import math
from typing import Final

import torch
from torch import Tensor

from kernels.checks import expect
from kernels.dialect import constexpr, jit, power_of_two, tl, uses_triton
from kernels.rope import rotate

__all__ = [
    "SPLITS",
    "STAGES",
    "TILE",
    "TILE_INT8",
    "quantise",
    "ring_decode",
    "ring_decode_kernel",
    "ring_decode_reference",
]

SPLITS: Final = 8
"""Programs that share one row's head."""
LEAST: Final = 128
"""Slots that are worth a program of their own: below, what a split writes for `combine` outweighs what it shares."""
TILE: Final = 32
TILE_INT8: Final = 16
"""Slots that a program reads at a time; twice as many int8 would not fit its registers."""
STAGES: Final = 3
"""Tiles under way at once."""
_LOG2_E: Final = 1.4426950408889634
_INT8_LARGEST: Final = 127.0
_INT8_SMALLEST_SCALE: Final = 1e-12


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the same shape and float32 scales without the last dimension: symmetric, absmax / 127."""
    scale = (x.float().abs().amax(dim=-1) / _INT8_LARGEST).clamp(min=_INT8_SMALLEST_SCALE)
    return torch.floor(x.float() / scale[..., None] + 0.5).to(torch.int8), scale


def ring_decode_reference(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    offset: Tensor,
    moving: Tensor,
) -> Tensor:
    """One row after another, one slot after another: what `ring_decode` and `combine` together must equal.

    Arguments as for `ring_decode`. Writes the ring of rows that move and returns float32 `[B, T, H, D]`.
    """
    rows, times, _, heads, width = qkv.shape
    out = torch.zeros(rows, times, heads, width, device=qkv.device)
    q_BTHD, new_k_BTHD = (rotate(qkv[:, :, part], cosine, sine) for part in (0, 1))
    slots = k.shape[2]
    for row in moving.nonzero()[:, 0].tolist():
        past = int(offset[row])
        new = [(past + time) % slots for time in range(times)]
        for time, slot in enumerate(new):
            _write(k, k_scale, row, slot, new_k_BTHD[row, time])
            _write(v, v_scale, row, slot, qkv[row, time, 2])
        old = [slot for slot in range(min(past, slots)) if slot not in new]
        for time in range(times):
            seen = old + new[: time + 1]
            keys, values = (_read(ring, scale, row, seen) for ring, scale in ((k, k_scale), (v, v_scale)))
            scores = torch.einsum("hd,hsd->hs", q_BTHD[row, time], keys) / math.sqrt(width)
            out[row, time] = torch.einsum("hs,hsd->hd", scores.softmax(-1), values)
    return out


def _write(ring: Tensor, scale: Tensor | None, row: int, slot: int, x_HD: Tensor) -> None:
    if scale is None:
        ring[row, :, slot] = x_HD.to(ring.dtype)
    else:
        ring[row, :, slot], scale[row, :, slot] = quantise(x_HD)


def _read(ring: Tensor, scale: Tensor | None, row: int, slots: list[int]) -> Tensor:
    values = ring[row][:, slots].float()
    return values if scale is None else values * scale[row][:, slots, None]


@jit
def _quantised(x):
    scale = tl.maximum(tl.max(tl.abs(x), axis=1) / 127.0, 1e-12)
    return tl.floor(x / scale[:, None] + 0.5), scale


@jit
def _absorb(score, weight, v, peak, total, sums):
    """Take a block of scores `[T, s]` and values `[s, D]` into a running softmax in base 2."""
    higher = tl.maximum(peak, tl.max(score, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf minus -inf would be NaN
    share = tl.exp2(score - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(share, axis=1)
    sums = sums * shrink[:, None] + tl.sum((share * weight)[:, :, None] * v[None, :, :], axis=1)
    return higher, total, sums


@jit
def ring_decode_kernel(
    qkv,
    cosine,
    sine,
    k,
    v,
    k_scale,
    v_scale,
    offset,
    moving,
    partial,
    weight,
    row_stride,
    score_scale,
    T: constexpr,
    H: constexpr,
    D: constexpr,
    S: constexpr,
    P: constexpr,
    WIDE: constexpr,
    LEAST_S: constexpr,
    TILE_S: constexpr,
    INT8: constexpr,
    STAGES: constexpr,
):
    """`WIDE` is D rounded up to a power of two; strides and shapes are those that `ring_decode` checks."""
    split = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    if tl.load(moving + row) == 0:
        return
    past = tl.load(offset + row)
    filled = tl.minimum(past, S).to(tl.int32)
    span = tl.cdiv(tl.maximum(tl.cdiv(filled, P), LEAST_S), TILE_S) * TILE_S
    begin = split * span
    end = tl.minimum(begin + span, filled)
    t = tl.arange(0, T)
    at = ((row * H + head) * P + split) * T + t
    if (split > 0) & (begin >= end):
        tl.store(weight + at, tl.full([T], float("-inf"), tl.float32))
        return
    d = tl.arange(0, WIDE)
    inside = (t[:, None] >= 0) & (d[None, :] < D)

    # Queries and new keys, turned and de-interleaved: number d is pair d mod D/2, and its imaginary part from D/2 on.
    pair = d % (D // 2)
    angle = (row * T + t)[:, None] * (D // 2) + pair[None, :]
    cos = tl.load(cosine + angle, mask=inside, other=0.0)
    sin = tl.load(sine + angle, mask=inside, other=0.0)
    is_real = (d < D // 2)[None, :]
    here = ((row * T + t)[:, None] * 3 * H + head) * D + 2 * pair[None, :]
    real = tl.load(qkv + here, mask=inside, other=0.0).to(tl.float32)
    imaginary = tl.load(qkv + here + 1, mask=inside, other=0.0).to(tl.float32)
    q = tl.where(is_real, real * cos - imaginary * sin, real * sin + imaginary * cos) * score_scale

    peak = tl.full([T], float("-inf"), tl.float32)
    total = tl.zeros([T], tl.float32)
    sums = tl.zeros([T, WIDE], tl.float32)
    ring = row * row_stride + head.to(tl.int64) * S * D
    scales = (row * H + head) * S

    first = (past % S).to(tl.int32)
    for start in tl.range(begin, end, TILE_S, num_stages=STAGES):
        slot = start + tl.arange(0, TILE_S)
        behind = slot - first
        behind = tl.where(behind < 0, behind + S, behind)
        seen = (slot < end) & (behind >= T)
        place = ring + slot[:, None] * D + d[None, :]
        mask = seen[:, None] if WIDE == D else seen[:, None] & (d < D)[None, :]
        keys = tl.load(k + place, mask=mask, other=0).to(tl.float32)
        values = tl.load(v + place, mask=mask, other=0).to(tl.float32)
        score = tl.sum(q[:, None, :] * keys[None, :, :], axis=2)
        if INT8:
            score = score * tl.load(k_scale + scales + slot, mask=seen, other=0.0)[None, :]
            worth = tl.load(v_scale + scales + slot, mask=seen, other=0.0)[None, :]
        else:
            worth = 1.0
        score = tl.where(seen[None, :], score, float("-inf"))
        peak, total, sums = _absorb(score, worth, values, peak, total, sums)

    if split == 0:
        new_real = tl.load(qkv + here + H * D, mask=inside, other=0.0).to(tl.float32)
        new_imaginary = tl.load(qkv + here + H * D + 1, mask=inside, other=0.0).to(tl.float32)
        new_k = tl.where(is_real, new_real * cos - new_imaginary * sin, new_real * sin + new_imaginary * cos)
        straight = ((row * T + t)[:, None] * 3 * H + 2 * H + head) * D + d[None, :]
        new_v = tl.load(qkv + straight, mask=inside, other=0.0).to(tl.float32)
        slot = (past + t) % S
        place = ring + slot[:, None] * D + d[None, :]
        new_k_scale = tl.full([T], 1.0, tl.float32)
        new_v_scale = new_k_scale
        if INT8:
            new_k, new_k_scale = _quantised(new_k)
            new_v, new_v_scale = _quantised(new_v)
            tl.store(k_scale + scales + slot, new_k_scale)
            tl.store(v_scale + scales + slot, new_v_scale)
        kept_k = new_k.to(k.dtype.element_ty)
        kept_v = new_v.to(v.dtype.element_ty)
        tl.store(k + place, kept_k, mask=inside)
        tl.store(v + place, kept_v, mask=inside)
        score = tl.sum(q[:, None, :] * kept_k.to(tl.float32)[None, :, :], axis=2)
        if INT8:
            score = score * new_k_scale[None, :]
            worth = new_v_scale[None, :]
        else:
            worth = 1.0
        score = tl.where(t[:, None] >= t[None, :], score, float("-inf"))
        peak, total, sums = _absorb(score, worth, kept_v.to(tl.float32), peak, total, sums)

    some = total > 0.0
    tl.store(weight + at, tl.where(some, peak + tl.log2(tl.where(some, total, 1.0)), float("-inf")))
    mean = sums / tl.where(some, total, 1.0)[:, None]
    tl.store(partial + at[:, None] * D + d[None, :], mean, mask=inside & some[:, None])


@torch.library.custom_op("duologue::ring_decode", mutates_args=("k", "v", "k_scale", "v_scale", "partial", "weight"))
def ring_decode(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    offset: Tensor,
    moving: Tensor,
    partial: Tensor,
    weight: Tensor,
) -> None:
    """Write the new positions into the ring and attend, in splits that `combine` merges.

    `qkv` `[B, T, 3, H, D]`, interleaved pairs; `cosine`, `sine` float32 `[B, T, D / 2]` from `rope_table`; `k`, `v`
    `[B, H, S, D]` of float32, float16, bfloat16 or int8, of which rows may lie apart; `k_scale`, `v_scale` float32
    `[B, H, S]`, with an int8 ring only; `offset` int64 `[B]`, positions before this step; `moving` bool `[B]`;
    `partial` float32 `[B, H, P, T, D]` and `weight` float32 `[B, H, P, T]` (base-2 logarithms) are for `combine`. P and
    T are powers of two. Without Triton, everything is put into split 0.
    Raises `ValueError` for shapes that do not belong together.
    """
    _check(qkv, cosine, sine, k, v, k_scale, v_scale, offset, moving, partial, weight)
    if not uses_triton(qkv):
        whole = ring_decode_reference(qkv, cosine, sine, k, v, k_scale, v_scale, offset, moving)
        partial[moving, :, 0] = whole.transpose(1, 2)[moving]
        weight[moving] = -torch.inf
        weight[moving, :, 0] = 0.0
        return
    rows, times, _, heads, width = qkv.shape
    tile = TILE if k_scale is None else TILE_INT8
    ring_decode_kernel[(partial.shape[2], heads, rows)](
        qkv, cosine, sine, k, v, k if k_scale is None else k_scale, v if v_scale is None else v_scale,
        offset, moving, partial, weight, k.stride(0), _LOG2_E / math.sqrt(width),
        T=times, H=heads, D=width, S=k.shape[2], P=partial.shape[2], WIDE=power_of_two(width),
        LEAST_S=LEAST, TILE_S=tile, INT8=k_scale is not None, STAGES=STAGES,
    )  # fmt: skip


@ring_decode.register_fake
def _(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    offset: Tensor,
    moving: Tensor,
    partial: Tensor,
    weight: Tensor,
) -> None:
    _check(qkv, cosine, sine, k, v, k_scale, v_scale, offset, moving, partial, weight)


def _check(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    offset: Tensor,
    moving: Tensor,
    partial: Tensor,
    weight: Tensor,
) -> None:
    rows, times, parts, heads, width = qkv.shape
    slots, splits = k.shape[2], partial.shape[2]
    if parts != 3 or width % 2 or times & (times - 1) or splits & (splits - 1) or times > slots:
        raise ValueError(
            f"qkv is {list(qkv.shape)} with {splits} splits and {slots} slots; expected [B, T, 3, H, D] with D even, "
            "T and the splits powers of two, and T at most the slots"
        )
    for name, angles in (("cosine", cosine), ("sine", sine)):
        expect(name, angles, (rows, times, width // 2), torch.float32)
    for name, ring in (("k", k), ("v", v)):
        expect(name, ring, (rows, heads, slots, width), apart=True)
    if (k.dtype == torch.int8) != (k_scale is not None and v_scale is not None) or k.stride() != v.stride():
        raise ValueError(
            f"a ring of {k.dtype} and {v.dtype}; expected scales with int8 and only then, and equal strides"
        )
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is not None:
            expect(name, scale, (rows, heads, slots), torch.float32)
    expect("offset", offset, (rows,), torch.int64)
    expect("moving", moving, (rows,), torch.bool)
    expect("partial", partial, (rows, heads, splits, times, width), torch.float32)
    expect("weight", weight, (rows, heads, splits, times), torch.float32)
