# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""From logits to a token, every row by its own temperature, top-k and noise, and the token's log-probability.

In this order, which is that of `server.engine.sampling`: division by the temperature; `pad_mult` added to the padding
token; everything below the k-th largest value removed, ties at it kept; Gumbel noise added; argmax, of equal ones the
first. The log-probability is that of the raw logits, in float32.

The noise is Philox4x32-10 (Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011) of the counter
(token // 4, codebook, frame, 0) under the row's seed, so a row's tokens never depend on who shares the batch.

The k-th largest value is found without sorting: order-preserving integers stand for the floats, and sixteen passes over
the row fix two bits each. One program does one row; a row fits a GPU's cache.

Legend: B rows, V vocabulary.
"""

from typing import Final

import torch
from torch import Tensor

from kernels.checks import expect
from kernels.dialect import constexpr, jit, tl, uses_triton

__all__ = ["BLOCK", "WARPS", "gumbel_reference", "sample_topk", "sample_topk_kernel", "sample_topk_reference"]

BLOCK: Final = 2048
"""Tokens that a program looks at at a time; a power of two."""
WARPS: Final = 16
_LOW_32: Final = 0xFFFFFFFF
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)


def gumbel_reference(seed: Tensor, frame: Tensor, codebook: int, card: int) -> Tensor:
    """Noise float32 `[B, V]` of one codebook, from int64 `[B]` seeds of 63 bits and frames below 2**32."""
    block = torch.arange(-(-card // 4), device=seed.device)[None]
    c0, c1, c2, c3 = block, torch.full_like(block, codebook), frame[:, None], torch.zeros_like(block)
    k0, k1 = (seed & _LOW_32)[:, None], (seed >> 32)[:, None]
    for _ in range(10):
        one, other = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (other >> 32) & _LOW_32 ^ c1 ^ k0, other & _LOW_32
        c2, c3 = (one >> 32) & _LOW_32 ^ c3 ^ k1, one & _LOW_32
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_32, (k1 + _KEY_STEPS[1]) & _LOW_32
    bits = torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)[:, :card]
    return -torch.log(-torch.log(((bits >> 9).float() + 0.5) * 2.0**-23))


def sample_topk_reference(
    logits: Tensor,
    raw: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    noise_scale: Tensor,
    pad_mult: Tensor,
    seed: Tensor,
    frame: Tensor,
    codebook: int,
    pad_id: int,
) -> tuple[Tensor, Tensor]:
    """Tokens int64 `[B]` and log-probabilities float32 `[B]` of every row. Arguments as for `sample_topk`."""
    card = logits.shape[1]
    warmed = logits.float() / temperature[:, None]
    if pad_id >= 0:
        warmed[:, pad_id] += pad_mult
    kept = torch.where(noise_scale > 0, top_k.clamp(max=card), card)
    threshold = warmed.sort(dim=-1, descending=True).values.gather(1, kept[:, None] - 1)
    noise = gumbel_reference(seed, frame, codebook, card) * noise_scale[:, None]
    token = (warmed.masked_fill(warmed < threshold, -torch.inf) + noise).argmax(-1)
    return token, torch.log_softmax(raw.float(), dim=-1).gather(1, token[:, None])[:, 0]


@jit
def _warmed(logits, at, v, temperature, pad_mult, pad_id, V: constexpr):
    value = tl.load(logits + at + v, mask=v < V, other=0.0).to(tl.float32)
    value = tl.div_rn(value, temperature) + tl.where(v == pad_id, pad_mult, 0.0)
    return tl.where(v < V, value + 0.0, float("-inf"))  # no minus zero: it is not below zero


@jit
def _ordered(value):
    """Unsigned integers that are ordered as the floats are."""
    bits = value.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@jit
def _gumbel(seed, frame, codebook, start, BLOCK_V: constexpr):
    block = (start // 4 + tl.arange(0, BLOCK_V // 4)).to(tl.uint32)
    nothing = block * 0
    a, b, c, d = tl.philox(seed, block, nothing + codebook.to(tl.uint32), nothing + frame.to(tl.uint32), nothing)
    bits = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK_V])
    return -tl.log(-tl.log(((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07))


@jit
def sample_topk_kernel(
    logits,
    raw,
    temperature,
    top_k,
    noise_scale,
    pad_mult,
    seed,
    frame,
    moving,
    token,
    logprob,
    codebook,
    pad_id,
    V: constexpr,
    BLOCK_V: constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(moving + row) == 0:
        return
    at = row * V
    heat = tl.load(temperature + row)
    louder = tl.load(pad_mult + row)
    scale = tl.load(noise_scale + row)
    kept = tl.load(top_k + row)

    threshold = tl.full([], 0, tl.uint32)
    if (kept < V) & (scale > 0.0):
        unit = tl.full([], 1 << 30, tl.uint32)
        for _ in range(16):
            more1 = 0
            more2 = 0
            more3 = 0
            for start in range(0, V, BLOCK_V):
                v = start + tl.arange(0, BLOCK_V)
                key = _ordered(_warmed(logits, at, v, heat, louder, pad_id, V))
                more1 += tl.sum((key >= threshold + unit).to(tl.int32), axis=0)
                more2 += tl.sum((key >= threshold + 2 * unit).to(tl.int32), axis=0)
                more3 += tl.sum((key >= threshold + 3 * unit).to(tl.int32), axis=0)
            digit = (more1 >= kept).to(tl.uint32) + (more2 >= kept).to(tl.uint32) + (more3 >= kept).to(tl.uint32)
            threshold = threshold + digit * unit
            unit = unit >> 2

    best = tl.full([], float("-inf"), tl.float32)
    chosen = tl.full([], 0, tl.int32)
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    whose = tl.load(seed + row)
    when = tl.load(frame + row)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        value = _warmed(logits, at, v, heat, louder, pad_id, V)
        score = value + _gumbel(whose, when, codebook, start, BLOCK_V) * scale
        score = tl.where((v < V) & (_ordered(value) >= threshold), score, float("-inf"))
        top = tl.max(score, axis=0)
        where = tl.argmax(score, axis=0) + start
        chosen = tl.where(top > best, where, chosen)
        best = tl.maximum(top, best)
        plain = tl.load(raw + at + v, mask=v < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(plain, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing possible yet: -inf minus -inf would be NaN
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(plain - base), axis=0)
        peak = higher
    tl.store(token + row, chosen.to(tl.int64))
    tl.store(logprob + row, tl.load(raw + at + chosen).to(tl.float32) - peak - tl.log(total))


@torch.library.custom_op("duologue::sample_topk", mutates_args=("token", "logprob"))
def sample_topk(
    logits: Tensor,
    raw: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    noise_scale: Tensor,
    pad_mult: Tensor,
    seed: Tensor,
    frame: Tensor,
    moving: Tensor,
    codebook: int,
    pad_id: int,
    token: Tensor,
    logprob: Tensor,
) -> None:
    """Choose `token` (int64 `[B]`) of every moving row and say its `logprob` (float32 `[B]`); other rows keep theirs.

    `logits` and `raw` `[B, V]` of any float type: with penalties and without, or twice the same. `temperature` float32
    `[B]`, above 0; `top_k` int64 `[B]`, from 1; `noise_scale` float32 `[B]`, 1 to sample and 0 to take the largest
    (then without temperature, which is 1); `pad_mult` float32 `[B]` for token `pad_id` (-1: for none); `seed` int64
    `[B]` of 63 bits; `frame` int64 `[B]` below 2**32; `moving` bool `[B]`; `codebook` 0 for text.
    Raises `ValueError` for shapes that do not belong together.
    """
    _check(logits, raw, temperature, top_k, noise_scale, pad_mult, seed, frame, moving, pad_id, token, logprob)
    if not uses_triton(logits):
        chosen, likely = sample_topk_reference(
            logits, raw, temperature, top_k, noise_scale, pad_mult, seed, frame, codebook, pad_id
        )
        token.copy_(torch.where(moving, chosen, token))
        logprob.copy_(torch.where(moving, likely, logprob))
        return
    rows, card = logits.shape
    sample_topk_kernel[(rows,)](
        logits, raw, temperature, top_k, noise_scale, pad_mult, seed, frame, moving, token, logprob, codebook, pad_id,
        V=card, BLOCK_V=BLOCK, num_warps=WARPS,
    )  # fmt: skip


@sample_topk.register_fake
def _(
    logits: Tensor,
    raw: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    noise_scale: Tensor,
    pad_mult: Tensor,
    seed: Tensor,
    frame: Tensor,
    moving: Tensor,
    codebook: int,  # noqa: ARG001 - the same signature
    pad_id: int,
    token: Tensor,
    logprob: Tensor,
) -> None:
    _check(logits, raw, temperature, top_k, noise_scale, pad_mult, seed, frame, moving, pad_id, token, logprob)


def _check(
    logits: Tensor,
    raw: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    noise_scale: Tensor,
    pad_mult: Tensor,
    seed: Tensor,
    frame: Tensor,
    moving: Tensor,
    pad_id: int,
    token: Tensor,
    logprob: Tensor,
) -> None:
    rows, card = logits.shape
    expect("logits", logits, (rows, card))
    expect("raw", raw, (rows, card))
    for name, numbers in (("temperature", temperature), ("noise_scale", noise_scale), ("pad_mult", pad_mult)):
        expect(name, numbers, (rows,), torch.float32)
    for name, numbers in (("top_k", top_k), ("seed", seed), ("frame", frame), ("token", token)):
        expect(name, numbers, (rows,), torch.int64)
    expect("moving", moving, (rows,), torch.bool)
    expect("logprob", logprob, (rows,), torch.float32)
    if not -1 <= pad_id < card:
        raise ValueError(f"pad_id is {pad_id}; expected a token from 0 to {card - 1}, or -1 for none")
