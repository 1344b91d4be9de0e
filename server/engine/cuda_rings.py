"""Self-attention of one transformer's layers on a GPU: every row's rings, and how far each row has come.

Language model and codec differ in how many positions a step brings; the rest is the same. All memory is there from the
start and is written in place, so a CUDA graph may hold what is done here. What a row costs follows its age (see
`kernels.ring_decode`). This file knows no layers but their number.

Legend: B rows, T positions of a step, H heads, D width of a head, S ring slots.
"""

from typing import Any, Final, NamedTuple

import torch
from moshi.modules.transformer import StreamingMultiheadAttention
from torch import Tensor

from kernels.combine import combine
from kernels.ring_decode import SPLITS, ring_decode
from kernels.rope import rope_table
from server.engine.layers import require

__all__ = ["Rings", "ring_bytes"]

_SCALE_BYTES: Final = 4


class _Ring(NamedTuple):
    """One layer's keys and values, and their scales where they are int8."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None


class Rings:
    """Rings of all layers of one of upstream's transformers (`StreamingTransformer`).

    `times` positions come with each step, a power of two; `dtype` is what layers hand over and get, `kept` what the
    rings hold: any float type, or int8 with a scale for each (slot, head). `moving_B` (bool) is the caller's and says
    who moves. Raises `UnsupportedModelError` for attention of another kind.
    """

    def __init__(
        self, transformer: Any, moving_B: Tensor, *, times: int, dtype: torch.dtype, kept: torch.dtype
    ) -> None:
        attention = _checked(transformer)
        require(times & (times - 1) == 0, f"{times} positions in a frame, which is no power of two")
        rows, device = len(moving_B), moving_B.device
        self.heads, self.width = attention.num_heads, attention.embed_dim // attention.num_heads
        self.offset_B = torch.zeros(rows, dtype=torch.int64, device=device)
        """Positions that each row has taken."""
        self._moving_B, self._times, self._max_period = moving_B, times, float(transformer.max_period)
        shape = (rows, self.heads, int(attention.context), self.width)
        self._rings = [_ring(shape, kept, device) for _ in transformer.layers]
        self._partial = torch.zeros(rows, self.heads, SPLITS, times, self.width, device=device)
        self._weight = torch.zeros(rows, self.heads, SPLITS, times, device=device)
        self._attended = torch.zeros(rows, times, self.heads, self.width, dtype=dtype, device=device)

    def table(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of this step's positions, which all layers share."""
        return rope_table(self.offset_B, self._times, self.width, self._max_period)

    def attend(self, layer: int, qkv: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Write the new positions of moving rows and attend to what is there: `[B, T, H D]`, good until called again.

        `qkv` is what the layer's projection gives, `[..., 3 H D]` with B times T rows.
        """
        parts = qkv.view(-1, self._times, 3, self.heads, self.width)
        ring_decode(parts, *table, *self._rings[layer], self.offset_B, self._moving_B, self._partial, self._weight)
        combine(self._partial, self._weight, self._moving_B, self._attended)
        return self._attended.flatten(2)

    def advance(self) -> None:
        """Take moving rows to their next step."""
        self.offset_B += self._times * self._moving_B


def ring_bytes(transformer: Any, kept: torch.dtype) -> int:
    """Bytes that one row's rings take."""
    attention = transformer.layers[0].self_attn
    scales = _SCALE_BYTES * int(attention.num_heads) if kept == torch.int8 else 0
    slot = 2 * (int(attention.embed_dim) * kept.itemsize + scales)
    return len(transformer.layers) * int(attention.context) * slot


def _ring(shape: tuple[int, ...], kept: torch.dtype, device: torch.device) -> _Ring:
    k, v = (torch.zeros(shape, dtype=kept, device=device) for _ in "kv")
    if kept != torch.int8:
        return _Ring(k, v, None, None)
    k_scale, v_scale = (torch.zeros(shape[:3], device=device) for _ in "kv")
    return _Ring(k, v, k_scale, v_scale)


def _checked(transformer: Any) -> Any:
    """The first layer's attention, when all layers attend as `ring_decode` does."""
    require(transformer.positional_embedding == "rope", f"{transformer.positional_embedding!r} positions")
    for layer in transformer.layers:
        attention = layer.self_attn
        require(not layer.skip_self_attn and layer.cross_attention is None, "attention to something else")
        require(type(attention) is StreamingMultiheadAttention and attention.causal, "another kind of attention")
        require(attention.kv_repeat == 1, "keys that several heads share")
        require(attention.context is not None and not attention.weights_per_step, "attention without a context")
    return transformer.layers[0].self_attn
