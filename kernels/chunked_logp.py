# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""Log-probabilities of given tokens without ever holding the logits of a whole vocabulary; forward and backward.

Preference training needs one number per frame, log p(token), and the logits it comes from are V times as large. Here
they are made a chunk of the vocabulary at a time: a product of matrices (left to the library that does those best),
then a kernel that takes the chunk into a running log-sum-exp. The backward pass makes each chunk again and turns it, in
place, into the gradient of the logits, dlogp * (one-hot - softmax), from the log-sum-exp that the forward pass kept
(after Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models*, arXiv 2411.09009).

Everything after the product is float32, and so is the product's result. Tokens below 0 are padding: log-probability 0,
no gradient.

Legend: N frames, D width, V vocabulary, C tokens of a chunk.
"""

from typing import Any, Final

import torch
from torch import Tensor

from kernels.checks import expect
from kernels.dialect import constexpr, jit, tl, uses_triton

__all__ = [
    "BLOCK",
    "CHUNK",
    "chunked_logp",
    "chunked_logp_reference",
    "logp_absorb_kernel",
    "logp_gradient_kernel",
]

CHUNK: Final = 4096
"""Tokens of the vocabulary whose logits are held at once."""
BLOCK: Final = 1024
"""Tokens that a program looks at at a time; a power of two."""


def chunked_logp_reference(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As `chunked_logp`, through the full logits. Differentiable."""
    logp = torch.log_softmax(hidden.float() @ weight.float().T, dim=-1)
    picked = logp.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return torch.where(target >= 0, picked, 0.0)


@jit
def logp_absorb_kernel(logits, target, peak, total, picked, first, size, BLOCK_C: constexpr):
    """One program per frame: take `size` logits, of the tokens from `first` on, into its running softmax."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(target + row)
    if token < 0:
        return
    high = tl.load(peak + row)
    mass = tl.load(total + row)
    for start in range(0, size, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        value = tl.load(logits + row * size + c, mask=c < size, other=float("-inf"))
        higher = tl.maximum(high, tl.max(value, axis=0))
        mass = mass * tl.exp(high - higher) + tl.sum(tl.exp(value - higher), axis=0)
        high = higher
    tl.store(peak + row, high)
    tl.store(total + row, mass)
    if (token >= first) & (token < first + size):
        tl.store(picked + row, tl.load(logits + row * size + token - first))


@jit
def logp_gradient_kernel(logits, target, lse, dlogp, first, size, BLOCK_C: constexpr):
    """One program per (frame, block): the gradient of the logits, in their place."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < size
    token = tl.load(target + row)
    value = tl.load(logits + row * size + c, mask=inside, other=0.0)
    share = tl.exp(value - tl.load(lse + row))
    hit = tl.where(first + c == token, 1.0, 0.0)
    gradient = tl.where(token < 0, 0.0, tl.load(dlogp + row) * (hit - share))
    tl.store(logits + row * size + c, gradient, mask=inside)


def _chunk_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """float32 `[N, C]`."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T


def _absorb(logits: Tensor, target: Tensor, running: tuple[Tensor, Tensor, Tensor], first: int) -> None:
    peak, total, picked = running
    rows, size = logits.shape
    if uses_triton(logits):
        logp_absorb_kernel[(rows,)](logits, target, peak, total, picked, first, size, BLOCK_C=BLOCK)
        return
    higher = torch.maximum(peak, logits.amax(dim=1))
    total.mul_(torch.exp(peak - higher))
    here = (target >= first) & (target < first + size)
    found = logits.gather(1, (target - first).clamp(0, size - 1)[:, None])[:, 0]
    picked.copy_(torch.where(here, found, picked))
    total.add_(logits.sub_(higher[:, None]).exp_().sum(dim=1))
    peak.copy_(higher)


def _to_gradient(logits: Tensor, target: Tensor, lse: Tensor, dlogp: Tensor, first: int) -> None:
    rows, size = logits.shape
    if uses_triton(logits):
        grid = (rows, -(-size // BLOCK))
        logp_gradient_kernel[grid](logits, target, lse, dlogp, first, size, BLOCK_C=BLOCK)
        return
    logits.sub_(lse[:, None]).exp_().neg_()
    here = ((target >= first) & (target < first + size)).nonzero()[:, 0]
    logits[here, target[here] - first] += 1.0
    logits.mul_(torch.where(target < 0, 0.0, dlogp)[:, None])


@torch.library.custom_op("duologue::chunked_logp", mutates_args=())
def _chunked_logp(hidden: Tensor, weight: Tensor, target: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    _check(hidden, weight, target, chunk)
    peak = torch.full(target.shape, -torch.inf, device=hidden.device)
    total, picked = torch.zeros_like(peak), torch.zeros_like(peak)
    for first in range(0, weight.shape[0], chunk):
        _absorb(_chunk_logits(hidden, weight[first : first + chunk]), target, (peak, total, picked), first)
    real = target >= 0
    lse = torch.where(real, peak + torch.log(torch.where(real, total, 1.0)), 0.0)
    return torch.where(real, picked - lse, 0.0), lse


@_chunked_logp.register_fake
def _(hidden: Tensor, weight: Tensor, target: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    _check(hidden, weight, target, chunk)
    shape = target.shape
    return hidden.new_empty(shape, dtype=torch.float32), hidden.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("duologue::chunked_logp_backward", mutates_args=())
def _chunked_logp_backward(
    hidden: Tensor, weight: Tensor, target: Tensor, lse: Tensor, dlogp: Tensor, chunk: int, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    dhidden = torch.zeros(hidden.shape, device=hidden.device)
    dweight = weight.new_zeros(weight.shape if wants_weight else 0, dtype=torch.float32)
    for first in range(0, weight.shape[0], chunk):
        part = weight[first : first + chunk]
        gradient = _chunk_logits(hidden, part)
        _to_gradient(gradient, target, lse, dlogp, first)
        dhidden.addmm_(gradient, part.float())
        if wants_weight:
            torch.mm(gradient.T, hidden.float(), out=dweight[first : first + chunk])
    return dhidden.to(hidden.dtype), dweight.to(weight.dtype)


@_chunked_logp_backward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,  # noqa: ARG001 - the same signature
    lse: Tensor,  # noqa: ARG001
    dlogp: Tensor,  # noqa: ARG001
    chunk: int,  # noqa: ARG001
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), weight.new_empty(weight.shape if wants_weight else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, target, ctx.chunk = inputs
    ctx.save_for_backward(hidden, weight, target, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dlogp: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, target, lse = ctx.saved_tensors
    wants_weight = ctx.needs_input_grad[1]
    dhidden, dweight = _chunked_logp_backward(hidden, weight, target, lse, dlogp.contiguous(), ctx.chunk, wants_weight)
    return dhidden, dweight if wants_weight else None, None, None


_chunked_logp.register_autograd(_gradient, setup_context=_keep)


def chunked_logp(hidden: Tensor, weight: Tensor, target: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """`log_softmax(hidden @ weight.T)` at `target`, float32 `[N]`; 0 where `target` is negative.

    `hidden` `[N, D]` and `weight` `[V, D]` of one float type, `target` int64 `[N]` below V. At most `chunk` tokens'
    logits, float32, exist at a time. The gradient reaches `hidden`, and `weight` where it is wanted.
    Raises `ValueError` for shapes that do not belong together.
    """
    logp: Tensor = _chunked_logp(hidden, weight, target, chunk)[0]
    return logp


def _check(hidden: Tensor, weight: Tensor, target: Tensor, chunk: int) -> None:
    frames, width = hidden.shape
    expect("hidden", hidden, (frames, width), weight.dtype)
    expect("weight", weight, (weight.shape[0], width))
    expect("target", target, (frames,), torch.int64)
    if chunk < 1:
        raise ValueError(f"a chunk of {chunk} tokens; expected at least 1, and a few thousand to be fast")
