"""Where adapters are kept for `lora_delta`: room for every layer from the start, written in place, never moved.

A CUDA graph knows addresses, so an adapter comes and goes by copies into the same memory, while no row uses it. This
file knows layers by name and nothing of files, versions or people. Its methods are `kernels.cpu.AdapterMemory`'s.

Legend: R rank, I and O widths of a layer.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kernels.cpu import LowRank
from kernels.lora_delta import lora_delta

__all__ = ["AdapterBank"]


class AdapterBank:
    """Room for `count` adapters of rank up to `rank`, numbered from 1; number 0 is the model as it was loaded.

    `layers` says what goes into each layer and what comes out; `rows` is the width of a batch.
    """

    def __init__(
        self,
        layers: Mapping[str, tuple[int, int]],
        *,
        count: int,
        rank: int,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.sites = {name: place for place, name in enumerate(layers)}
        self.count, self.rank = count, rank
        self._widths = dict(layers)
        self._down = {
            name: torch.zeros(count, rank, width_in, dtype=dtype, device=device)
            for name, (width_in, _) in layers.items()
        }
        self._up = {
            name: torch.zeros(count, width_out, rank, dtype=dtype, device=device)
            for name, (_, width_out) in layers.items()
        }
        self._scaling = torch.zeros(len(layers), count, device=device)
        self._inner = torch.zeros(rows, rank, device=device)

    def widths(self, name: str) -> tuple[int, int]:
        """What goes into a layer, and what comes out."""
        return self._widths[name]

    def write(
        self, number: int, parts: Mapping[str, LowRank], scaling: float, *, pause: Callable[[], None] = lambda: None
    ) -> None:
        """Put an adapter in place `number`, which no row may use now. Layers whose `b` is zero cost nothing later.

        `pause` is called between layers, for a thread that must not be in the way of others.
        """
        self.clear(number)
        for name, (a, b) in parts.items():
            pause()
            if not b.any():
                continue
            rank = a.shape[0]
            down, up = self._down[name][number - 1], self._up[name][number - 1]
            down.zero_()[:rank].copy_(a)
            up.zero_()[:, :rank].copy_(b)
            self._scaling[self.sites[name], number - 1] = scaling

    def clear(self, number: int) -> None:
        """Let a place hold nothing. No row may use it now."""
        assert 1 <= number <= self.count
        self._scaling[:, number - 1] = 0.0

    def add(self, name: str, x: Tensor, adapter: Tensor, moving: Tensor, out: Tensor) -> None:
        """Add every moving row's adapter of one layer to `out` `[B, O]`, from `x` `[B, I]`; see `lora_delta`."""
        scaling = self._scaling[self.sites[name]]
        lora_delta(x, self._down[name], self._up[name], scaling, adapter, moving, self._inner, out)
