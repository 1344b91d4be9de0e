"""Upstream's transformer layers over whole rows of a batch: given positions, a given view, and adapters that learn.

The order of operations is upstream's (`moshi.modules.transformer`), so the numbers are those of serving. What differs:
each position sees what `View` says, of the last layer only the asked rows are made, and little is kept for the
gradient. It knows no tokens.

Legend: B pairs, S positions of a row, D width, H heads, C width of a head, F half of it, N asked rows.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

import torch
from moshi.modules.transformer import RMSNorm
from torch import Tensor, nn
from torch.nn import functional

from online_align.batches import Batch
from online_align.lora import Prepare, adapted, factors

__all__ = ["TemporalLayer", "View", "norm"]


class View(NamedTuple):
    """Which positions see which."""

    shared: int
    """The first so many positions of every row are an ordinary past: each sees itself and all before it."""
    bias_BSS: Tensor
    """0 where the first position sees the second, minus infinity elsewhere."""

    @classmethod
    def of(cls, batch: Batch, dtype: torch.dtype) -> Self:
        """The view that a batch's rows have, as attention takes it."""
        nothing = torch.zeros((), dtype=dtype, device=batch.visible_BSS.device)
        return cls(batch.shared, torch.where(batch.visible_BSS, nothing, -torch.inf))


class TemporalLayer(nn.Module):
    """One of upstream's transformer layers over rows with given positions and a given view."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BSD: Tensor, turn_B1SF: Tensor, view: View, asked_BN: Tensor | None, enabled: bool) -> Tensor:
        """Next layer's input `[B, S, D]`, or only its rows `asked_BN` (int64), `[B, N, D]`."""
        layer, attention = self.layer, self.layer.self_attn
        heads, width = attention.num_heads, x_BSD.shape[-1]
        before = norm(layer.norm1)
        weight, a, b, scaling = factors(attention.in_projs[0], enabled=enabled)
        if asked_BN is None:
            qkv = adapted(x_BSD, before, weight, a, b, scaling)
            q, k, v = (_heads(each, heads) for each in qkv.chunk(3, dim=-1))
            y = _attend(_rotated(q, turn_B1SF), _rotated(k, turn_B1SF), v, view)
        else:
            kv = adapted(x_BSD, before, weight[width:], a, None if b is None else b[width:], scaling)
            k, v = (_heads(each, heads) for each in kv.chunk(2, dim=-1))
            x_BSD = _rows(x_BSD, asked_BN)
            q = _heads(adapted(x_BSD, before, weight[:width], a, None if b is None else b[:width], scaling), heads)
            q = _rotated(q, _rows(turn_B1SF[:, 0], asked_BN)[:, None])
            bias = _rows(view.bias_BSS, asked_BN)[:, None]
            y = functional.scaled_dot_product_attention(q, _rotated(k, turn_B1SF), v, bias)
        y = adapted(y.transpose(1, 2).flatten(2), _as_it_is, *factors(attention.out_projs[0], enabled=enabled))
        x = x_BSD + layer.layer_scale_1(y)
        out: Tensor = x + layer.layer_scale_2(self._feed_forward(x, enabled))
        return out

    def _feed_forward(self, x: Tensor, enabled: bool) -> Tensor:
        layer = self.layer
        if layer.gating is None:
            inner = adapted(x, norm(layer.norm2), *factors(layer.linear1, enabled=enabled))
            return adapted(inner, layer.activation, *factors(layer.linear2, enabled=enabled))
        inner = adapted(x, norm(layer.norm2), *factors(layer.gating.linear_in, enabled=enabled))
        return adapted(inner, _gate(layer.gating.activation), *factors(layer.gating.linear_out, enabled=enabled))


def norm(module: nn.Module) -> Prepare:
    """One of upstream's norms as a plain function: upstream compiles its own, which costs minutes on a CPU."""
    return _Rms(module) if isinstance(module, RMSNorm) else module


class _Rms:
    """Upstream's `RMSNorm` in float32, and its gradient."""

    def __init__(self, module: RMSNorm) -> None:
        self._module = module
        self._eps = float(module.eps)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        z: Tensor = (wide * self._scale(wide)).mul_(self._alpha)
        return z.to(x.dtype)

    def slope(self, x: Tensor, dz: Tensor) -> Tensor:
        wide = x.float()
        scale = self._scale(wide)
        slope = dz.float() * self._alpha
        along = (slope * wide).mean(-1, keepdim=True)
        dx: Tensor = slope.mul_(scale).addcmul_(wide, along * scale**3, value=-1.0)
        return dx.to(x.dtype)

    def _scale(self, wide: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale: Tensor = (size.square() / wide.shape[-1] + self._eps).rsqrt()
        return scale

    @property
    def _alpha(self) -> Tensor:
        weight: Tensor = self._module.alpha  # asked for anew each time: FSDP puts another tensor in its place
        return weight.float()


def _attend(q_BHSC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, view: View) -> Tensor:
    """Attention `[B, H, S, C]`: the past causally, which costs half, and the sides with their view of everything."""
    past = view.shared
    if not past:
        return functional.scaled_dot_product_attention(q_BHSC, k_BHSC, v_BHSC, view.bias_BSS[:, None])
    of_past = functional.scaled_dot_product_attention(
        q_BHSC[:, :, :past], k_BHSC[:, :, :past], v_BHSC[:, :, :past], is_causal=True
    )
    bias = view.bias_BSS[:, None, past:]
    return torch.cat([of_past, functional.scaled_dot_product_attention(q_BHSC[:, :, past:], k_BHSC, v_BHSC, bias)], 2)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _gate(activation: Callable[[Tensor], Tensor]) -> Prepare:
    return _SILU_GATE if activation is functional.silu else _Gate(activation)


class _Gate:
    """Half of the input opens or closes the other half."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        self._activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        opening, passing = x.chunk(2, dim=-1)
        return self._activation(opening) * passing


class _SiluGate:
    """The gate of Moshi's layers, and its gradient."""

    def __call__(self, x: Tensor) -> Tensor:
        opening, passing = x.chunk(2, dim=-1)
        return functional.silu(opening).mul_(passing)

    def slope(self, x: Tensor, dz: Tensor) -> Tensor:
        opening, passing = x.chunk(2, dim=-1)
        dx = torch.empty_like(x)
        to_opening, to_passing = dx.chunk(2, dim=-1)
        torch.mul(functional.silu(opening), dz, out=to_passing)
        to_opening.copy_(torch.ops.aten.silu_backward(dz.mul_(passing), opening))
        return dx


_SILU_GATE: Final = _SiluGate()


def _heads(x_BSD: Tensor, heads: int) -> Tensor:
    return x_BSD.reshape(*x_BSD.shape[:2], heads, -1).transpose(1, 2)


def _rotated(x_BHSC: Tensor, turn_B1SF: Tensor) -> Tensor:
    """Rotary positions over neighbouring pairs of numbers, in float32 as upstream's."""
    pairs = torch.view_as_complex(x_BHSC.float().contiguous().view(*x_BHSC.shape[:3], -1, 2))
    return torch.view_as_real(pairs * turn_B1SF).flatten(-2).to(x_BHSC.dtype)


def _rows(x_BSX: Tensor, asked_BN: Tensor) -> Tensor:
    return x_BSX.gather(1, asked_BN[..., None].expand(-1, -1, x_BSX.shape[-1]))
