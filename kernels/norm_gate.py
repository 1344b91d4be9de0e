# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false
"""The residual and the norm before a block, and the gate inside it: what lies between the products of matrices.

`rms_norm` is `moshi.modules.transformer.RMSNorm` in float32 order (Zhang and Sennrich, *Root Mean Square Layer
Normalization*, 2019, equation 4): the sum is rounded to the stream's type first, everything up to alpha is float32,
and only the result is rounded. `swiglu` is the middle of its `ActivationGating` (Shazeer, *GLU Variants Improve
Transformer*, arXiv 2002.05202, equation 6) with one rounding at the end.

Both have gradients, because training goes through them; `alpha` has none, because the base model is frozen.

Legend: R rows (any leading dimensions), N width.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from kernels.checks import expect
from kernels.dialect import constexpr, jit, power_of_two, tl, uses_triton

__all__ = [
    "BLOCK",
    "WARPS",
    "rms_norm",
    "rms_norm_backward_kernel",
    "rms_norm_kernel",
    "rms_norm_reference",
    "swiglu",
    "swiglu_backward_kernel",
    "swiglu_kernel",
    "swiglu_reference",
]

BLOCK: Final = 1024
"""Numbers that one program of `swiglu` gates."""
WARPS: Final = 8


def rms_norm_reference(x: Tensor, update: Tensor, alpha: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As `rms_norm`, by upstream's own order of operations."""
    total = x + update
    wide = total.float()
    scale = torch.rsqrt(epsilon + wide.square().mean(dim=-1, keepdim=True))
    return total, (wide * (alpha.float() * scale)).to(x.dtype)


def swiglu_reference(x: Tensor) -> Tensor:
    """As `swiglu`."""
    gate, value = x.float().chunk(2, dim=-1)
    return (functional.silu(gate) * value).to(x.dtype)


@jit
def rms_norm_kernel(x, update, alpha, total, out, epsilon, N: constexpr, WIDE: constexpr, RESIDUAL: constexpr):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64) * N
    n = tl.arange(0, WIDE)
    inside = n < N
    wide = tl.load(x + row + n, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        wide += tl.load(update + row + n, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(x.dtype.element_ty)
        tl.store(total + row + n, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = tl.rsqrt(epsilon + tl.sum(wide * wide, axis=0) / N)
    gain = tl.load(alpha + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + n, (wide * (gain * scale)).to(out.dtype.element_ty), mask=inside)


@jit
def rms_norm_backward_kernel(total, alpha, dtotal, dout, dx, epsilon, N: constexpr, WIDE: constexpr):
    """One program per row: the gradient of `total`, through the norm and beside it."""
    row = tl.program_id(0).to(tl.int64) * N
    n = tl.arange(0, WIDE)
    inside = n < N
    wide = tl.load(total + row + n, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(alpha + n, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dout + row + n, mask=inside, other=0.0).to(tl.float32) * gain
    scale = tl.rsqrt(epsilon + tl.sum(wide * wide, axis=0) / N)
    along = tl.sum(grad * wide, axis=0) * scale * scale / N
    beside = tl.load(dtotal + row + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row + n, (beside + scale * (grad - wide * along)).to(dx.dtype.element_ty), mask=inside)


@jit
def swiglu_kernel(x, out, N: constexpr, BLOCK_N: constexpr):
    """One program per (row, block)."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    gate = tl.load(x + row * 2 * N + n, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + row * 2 * N + N + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + n, (gate * tl.sigmoid(gate) * value).to(out.dtype.element_ty), mask=inside)


@jit
def swiglu_backward_kernel(x, dout, dx, N: constexpr, BLOCK_N: constexpr):
    """One program per (row, block)."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    at = row * 2 * N + n
    gate = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + at + N, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dout + row * N + n, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    slope = share * (1.0 + gate * (1.0 - share))
    tl.store(dx + at, (grad * value * slope).to(dx.dtype.element_ty), mask=inside)
    tl.store(dx + at + N, (grad * gate * share).to(dx.dtype.element_ty), mask=inside)


@torch.library.custom_op("duologue::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, update: Tensor | None, alpha: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    _check_norm(x, update, alpha)
    if not uses_triton(x):
        return rms_norm_reference(x, torch.zeros_like(x) if update is None else update, alpha, epsilon)
    width = x.shape[-1]
    total, out = torch.empty_like(x) if update is not None else x.clone(), torch.empty_like(x)
    rms_norm_kernel[(x.numel() // width,)](
        x, x if update is None else update, alpha, total, out, epsilon,
        N=width, WIDE=power_of_two(width), RESIDUAL=update is not None, num_warps=WARPS,
    )  # fmt: skip
    return total, out


@_rms_norm.register_fake
def _(x: Tensor, update: Tensor | None, alpha: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    _check_norm(x, update, alpha)
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("duologue::rms_norm_backward", mutates_args=())
def _rms_norm_backward(total: Tensor, alpha: Tensor, dtotal: Tensor, dout: Tensor, epsilon: float) -> Tensor:
    width = total.shape[-1]
    if not uses_triton(total):
        wide, gain = total.float(), dout.float() * alpha.float()
        scale = torch.rsqrt(epsilon + wide.square().mean(dim=-1, keepdim=True))
        along = (gain * wide).mean(dim=-1, keepdim=True) * scale.square()
        return (dtotal.float() + scale * (gain - wide * along)).to(total.dtype)
    dx = torch.empty_like(total)
    rms_norm_backward_kernel[(total.numel() // width,)](
        total, alpha, dtotal, dout, dx, epsilon, N=width, WIDE=power_of_two(width), num_warps=WARPS
    )
    return dx


@_rms_norm_backward.register_fake
def _(total: Tensor, alpha: Tensor, dtotal: Tensor, dout: Tensor, epsilon: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(total)


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, ctx.update, alpha, ctx.epsilon = inputs
    ctx.update = ctx.update is not None
    ctx.save_for_backward(output[0], alpha)


def _norm_gradient(ctx: Any, dtotal: Tensor, dout: Tensor) -> tuple[Tensor | None, ...]:
    total, alpha = ctx.saved_tensors
    dx = _rms_norm_backward(total, alpha, dtotal.contiguous(), dout.contiguous(), ctx.epsilon)
    return dx, dx if ctx.update else None, None, None


_rms_norm.register_autograd(_norm_gradient, setup_context=_keep_norm)


def rms_norm(x: Tensor, update: Tensor | None, alpha: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`x + update` and its norm, both like `x` `[..., N]`; without `update`, a copy of `x` and its norm.

    `alpha` has N numbers of any float type. Tensors are contiguous. The gradient reaches `x` and `update`, not `alpha`.
    Raises `ValueError` for shapes that do not belong together.
    """
    total, out = _rms_norm(x, update, alpha, epsilon)
    return total, out


@torch.library.custom_op("duologue::swiglu", mutates_args=())
def swiglu(x: Tensor) -> Tensor:
    """`silu(a) * b` of `x` `[..., 2 N]`, which is a and b, contiguous. Returns `[..., N]`. Has a gradient."""
    _check_gate(x)
    if not uses_triton(x):
        return swiglu_reference(x)
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    swiglu_kernel[(x.numel() // (2 * width), -(-width // BLOCK))](x, out, N=width, BLOCK_N=BLOCK)
    return out


@swiglu.register_fake
def _(x: Tensor) -> Tensor:
    _check_gate(x)
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("duologue::swiglu_backward", mutates_args=())
def _swiglu_backward(x: Tensor, dout: Tensor) -> Tensor:
    width = x.shape[-1] // 2
    if not uses_triton(x):
        gate, value = x.float().chunk(2, dim=-1)
        share, grad = gate.sigmoid(), dout.float()
        slope = share * (1.0 + gate * (1.0 - share))
        return torch.cat([grad * value * slope, grad * gate * share], dim=-1).to(x.dtype)
    dx = torch.empty_like(x)
    swiglu_backward_kernel[(x.numel() // (2 * width), -(-width // BLOCK))](x, dout, dx, N=width, BLOCK_N=BLOCK)
    return dx


@_swiglu_backward.register_fake
def _(x: Tensor, dout: Tensor) -> Tensor:  # noqa: ARG001 - the same signature
    return torch.empty_like(x)


def _keep_gate(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
    ctx.save_for_backward(*inputs)


def _gate_gradient(ctx: Any, dout: Tensor) -> Tensor:
    gradient: Tensor = _swiglu_backward(*ctx.saved_tensors, dout.contiguous())
    return gradient


swiglu.register_autograd(_gate_gradient, setup_context=_keep_gate)


def _check_norm(x: Tensor, update: Tensor | None, alpha: Tensor) -> None:
    expect("x", x, tuple(x.shape))
    if update is not None:
        expect("update", update, tuple(x.shape), x.dtype)
    if alpha.numel() != x.shape[-1] or not alpha.is_contiguous():
        raise ValueError(f"alpha has {alpha.numel()} numbers; expected {x.shape[-1]}, as wide as x, and contiguous")


def _check_gate(x: Tensor) -> None:
    expect("x", x, tuple(x.shape))
    if x.shape[-1] % 2:
        raise ValueError(f"x is {x.shape[-1]} wide; expected an even width, a gate and a value of equal size")
