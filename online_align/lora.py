"""Low-rank adapters in the `moshi` package's own layout, and their product with little to remember for the gradient.

`adapt` puts upstream's `LoRALinear` in the place of every linear layer of a module. `adapted` computes one of them
together with the cheap function in front of it (a norm, a gate): what the gradient needs of that function is made
again from its input, so a layer of the transformer keeps about half of what plain autograd would, and nothing is
approximate. It knows nothing of conversations.

Legend: N frames, I and O widths of a linear layer, R rank.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from moshi.modules.lora import LoRALinear, replace_all_linear_with_lora
from torch import Tensor, nn

__all__ = ["Prepare", "Sloped", "adapt", "adapted", "factors", "parts_of"]

Prepare = Callable[[Tensor], Tensor]
"""A cheap function of a layer's input without parameters to train."""


class Sloped(Protocol):
    """A `Prepare` that knows its own gradient, which is quicker than autograd's."""

    def __call__(self, x: Tensor) -> Tensor:
        """The function itself."""

    def slope(self, x: Tensor, dz: Tensor) -> Tensor:
        """Gradient of its input, from that of its result; `dz` may be overwritten."""


def adapt(module: nn.Module, *, rank: int, scaling: float, generator: torch.Generator) -> None:
    """Give every linear layer in `module` a low-rank part, in float32, that changes nothing yet.

    A is uniform as upstream's layers begin (Kaiming with a = sqrt(5)), drawn in the order of the names; B is zero.
    """
    replace_all_linear_with_lora(module, rank, scaling, dtype=torch.float32)
    module.requires_grad_(False)
    for _, layer in parts_of(module):
        bound = layer.in_features**-0.5
        if not layer.lora_A.weight.is_meta:
            drawn = torch.rand(layer.lora_A.weight.shape, generator=generator) * (2 * bound) - bound
            with torch.no_grad():
                layer.lora_A.weight.copy_(drawn)
                layer.lora_B.weight.zero_()
        layer.lora_A.weight.requires_grad_()
        layer.lora_B.weight.requires_grad_()


def parts_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every adapted layer (upstream's `LoRALinear`) in `module`, with its name."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            yield name, layer


def factors(layer: Any, *, enabled: bool) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
    """Weight `[O, I]`, A `[R, I]` and B `[O, R]` (None where there is none, or not `enabled`), and the scaling."""
    if not isinstance(layer, LoRALinear):
        return layer.weight, None, None, 0.0
    weight: Tensor = layer.frozen_W.weight
    if not enabled:
        return weight, None, None, 0.0
    return weight, layer.lora_A.weight, layer.lora_B.weight, float(layer.scaling)


def adapted(x: Tensor, prepare: Prepare, weight: Tensor, a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor:
    """`z W' + scaling (z A') B'` with `z = prepare(x)`, `[..., O]`. The weight is frozen; A and B are learned.

    The low-rank part is computed in its own type, the rest in the weight's.
    """
    product: Tensor = _Adapted.apply(x, prepare, weight, a, b, scaling)  # type: ignore[no-untyped-call]
    return product


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, prepare: Prepare, weight: Tensor, a: Tensor | None, b: Tensor | None, scaling: float
    ) -> Tensor:
        z = prepare(x)
        y = torch.nn.functional.linear(z, weight)
        low_NR = None
        if a is not None and b is not None:
            z_NI, y_NO = z.reshape(-1, z.shape[-1]), y.view(-1, y.shape[-1])
            low_NR = z_NI.to(a.dtype) @ a.T
            if y.dtype == b.dtype:
                y_NO.addmm_(low_NR, b.T, alpha=scaling)
            else:
                y_NO.add_((low_NR @ b.T).to(y.dtype), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, low_NR)
        ctx.prepare, ctx.scaling = prepare, scaling
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, z_low_NR = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        slope = getattr(ctx.prepare, "slope", None)
        with torch.set_grad_enabled(slope is None):
            x = x.detach().requires_grad_(wants_x and slope is None)
            z = ctx.prepare(x)
        dy_NO = dy.reshape(-1, dy.shape[-1])
        dz_NI = dy_NO @ weight if wants_x else None
        da = db = None
        if a is not None:
            z_NI, slope_NO = z.detach().reshape(-1, z.shape[-1]).to(a.dtype), dy_NO.to(a.dtype)
            low_NR = slope_NO @ b
            da = (low_NR.T @ z_NI).mul_(ctx.scaling)
            db = (slope_NO.T @ z_low_NR).mul_(ctx.scaling)
            if dz_NI is not None:
                dz_NI.add_((low_NR @ a).to(dz_NI.dtype), alpha=ctx.scaling)
        dx = None
        if dz_NI is not None:
            dz = dz_NI.view(z.shape)
            dx = slope(x, dz) if slope is not None else _slope(x, z, dz)
        return dx, None, None, da, db, None


def _slope(x: Tensor, z: Tensor, dz: Tensor) -> Tensor:
    return dz if z is x else torch.autograd.grad(z, x, dz)[0]
