"""Transformer layers of the `moshi` package as operations of a `kernels.cpu` program.

Only what a dialogue model of Moshi's family uses is known here; anything else raises `UnsupportedModelError`, and the
engine then runs upstream's own modules.

Legend: T positions in one step, D width of the transformer.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from moshi.modules.gating import ActivationGating
from moshi.modules.transformer import (
    LayerScale,
    RMSNorm,
    StreamingMultiheadAttention,
    StreamingTransformer,
    StreamingTransformerLayer,
)
from torch import Tensor, nn
from torch.nn import functional

from kernels.cpu import Program, RowMemory, UnsupportedModelError
from kernels.cpu.program import Counter

__all__ = ["StepLayer", "embedding_table", "linear_names", "norm", "plain_linear", "require", "transformer"]


def require(holds: bool, what: str) -> None:
    """Raise `UnsupportedModelError` unless the model is as the programs need it."""
    if not holds:
        raise UnsupportedModelError(what)


def plain_linear(module: Any) -> Tensor:
    """The weight `[O, I]` of a linear layer without bias, adapters or quantisation."""
    require(type(module) is nn.Linear and module.bias is None, f"a {type(module).__name__} with extras")
    weight: Tensor = module.weight
    return weight


def linear_names(lm: nn.Module) -> dict[int, str]:
    """The names of a model's linear layers, by their `id`: upstream's adapters have the same names."""
    return {id(module): name for name, module in lm.named_modules() if isinstance(module, nn.Linear)}


def embedding_table(module: Any) -> Tensor:
    """The table `[V, I]` of one of upstream's `ScaledEmbedding`s without extras."""
    plain = module.norm is None and module.low_rank is None and not module.demux_second_stream
    require(plain, "an embedding with a norm, a low rank or two streams")
    table: Tensor = module.weight
    return table


def norm(program: Program, module: nn.Module, x: int, y: int, *, times: int = 1) -> None:
    """One of upstream's norms, from `x` to `y`, both `[T, D]`."""
    if isinstance(module, RMSNorm):
        program.rms_norm(x, y, module.alpha, module.eps, times=times)
    elif isinstance(module, nn.LayerNorm):
        require(module.elementwise_affine, "a layer norm without weights")
        program.layer_norm(x, y, module.weight, module.bias, module.eps, times=times)
    else:
        require(isinstance(module, nn.Identity) and x == y, f"a norm of type {type(module).__name__}")


class StepLayer:
    """The scratch space of a transformer's layers, and one layer at a time over it."""

    def __init__(
        self,
        program: Program,
        memory: RowMemory,
        layers: nn.ModuleList,
        *,
        times: int,
        capacity: int,
        names: Mapping[int, str],
        bf16: bool = False,
    ) -> None:
        first: Any = layers[0]
        self._bf16 = bf16
        self._names = names
        self._program, self._times, self._capacity = program, times, capacity
        self._width: int = first.self_attn.embed_dim
        self._heads: int = first.self_attn.num_heads
        self._head_width = self._width // self._heads
        self._normed = memory.scratch(times * self._width)
        self._qkv = memory.scratch(times * 3 * self._width)
        self._attended = memory.scratch(times * self._width)
        widest = max(_feed_forward_width(layer) for layer in layers)
        self._inner = memory.scratch(times * widest)
        self._gated = memory.scratch(times * widest)
        self._rings = [memory.ring(self._heads, self._head_width, capacity, bf16=bf16) for _ in layers]

    def add(self, index: int, layer: Any, x: int, *, at: Counter | int, table: int = -1, weights: int = 0) -> None:
        """Layer `index`, in place on `x` `[T, D]`, with its `weights`-th set of weights."""
        require(type(layer) is StreamingTransformerLayer, f"a layer of type {type(layer).__name__}")
        require(layer.cross_attention is None and not layer.skip_self_attn, "cross attention, or a layer without any")
        attention = layer.self_attn
        require(type(attention) is StreamingMultiheadAttention, "another kind of attention")
        require(attention.kv_repeat == 1 and attention.causal, "grouped or non-causal attention")
        program, times = self._program, self._times
        norm(program, layer.norm1, x, self._normed, times=times)
        self._linear(attention.in_projs[weights], self._normed, self._qkv)
        program.attend(
            self._qkv, self._attended, self._rings[index], heads=self._heads, width=self._head_width,
            capacity=self._capacity, at=at, table=table, times=times, bf16=self._bf16,
        )  # fmt: skip
        self._linear(attention.out_projs[weights], self._attended, x, add=True, scale=layer.layer_scale_1)
        norm(program, layer.norm2, x, self._normed, times=times)
        self._feed_forward(layer, x, weights)

    def _feed_forward(self, layer: Any, x: int, weights: int) -> None:
        if layer.gating is None:
            require(layer.activation is functional.gelu, "an activation other than GELU")
            self._linear(layer.linear1, self._normed, self._inner)
            self._program.gelu(self._inner, self._gated, self._times * layer.linear1.out_features)
            last = layer.linear2
        else:
            gating = _gating(layer, weights)
            require(gating.activation is functional.silu, "a gate other than SiLU")
            self._linear(gating.linear_in, self._normed, self._inner)
            self._program.gate(self._inner, self._gated, gating.linear_out.in_features, times=self._times)
            last = gating.linear_out
        self._linear(last, self._gated, x, add=True, scale=layer.layer_scale_2)

    def _linear(self, module: Any, x: int, y: int, *, add: bool = False, scale: nn.Module | None = None) -> None:
        """A linear layer of the transformer; a layer scale is its last step, so it can be part of the weight."""
        weight_OI = plain_linear(module)
        plain = scale is None or isinstance(scale, nn.Identity)
        require(plain or isinstance(scale, LayerScale), f"a layer scale of type {type(scale).__name__}")
        self._program.matmul(
            x,
            y,
            weight_OI,
            times=self._times,
            x_stride=weight_OI.shape[1],
            y_stride=weight_OI.shape[0],
            add=add,
            name=self._names.get(id(module)),
            scale_O=scale.scale if isinstance(scale, LayerScale) else None,
        )


def transformer(
    program: Program,
    memory: RowMemory,
    module: StreamingTransformer,
    x: int,
    *,
    counter: Counter,
    times: int = 1,
    names: Mapping[int, str] = MappingProxyType({}),
    bf16: bool = False,
) -> None:
    """A whole streaming transformer, in place on `x` `[T, D]`; its positions are counted by `counter`.

    Linear layers whose `id` is in `names` may be changed by adapters. With `bf16` its rings keep bfloat16.
    """
    require(module.positional_embedding in {"rope", "none"}, f"{module.positional_embedding!r} positions")
    first: Any = module.layers[0]
    attention = first.self_attn
    require(attention.context is not None and not attention.weights_per_step, "attention without a context")
    layers = StepLayer(program, memory, module.layers, times=times, capacity=attention.context, names=names, bf16=bf16)
    table = -1
    if module.rope is not None:
        width = attention.embed_dim // attention.num_heads
        table = memory.scratch(times * width)
        program.rope(table, _frequencies(width, module.max_period), counter, times=times)
    for index, layer in enumerate(module.layers):
        layers.add(index, layer, x, at=counter, table=table)


def _frequencies(width: int, max_period: float) -> Tensor:
    """As upstream's `apply_rope` rounds them."""
    places = torch.arange(width // 2, dtype=torch.float32)
    return torch.exp(places * (-math.log(max_period) * 2 / width))


def _gating(layer: Any, weights: int) -> Any:
    gating = layer.gating[weights] if isinstance(layer.gating, nn.ModuleList) else layer.gating
    require(type(gating) is ActivationGating, f"a gate of type {type(gating).__name__}")
    return gating


def _feed_forward_width(layer: Any) -> int:
    if layer.gating is None:
        return int(layer.linear1.out_features)
    gatings: Any = layer.gating if isinstance(layer.gating, nn.ModuleList) else [layer.gating]
    return max(int(gating.linear_in.weight.shape[0]) for gating in gatings)
