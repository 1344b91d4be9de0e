"""Low-rank adapters that stay apart from the weights: a row's product is `w x`, plus `b (a x)` of its own adapter.

All memory is there from the start. An adapter is written while no row uses it, and used by a change of a row's index,
so conversations go on meanwhile. This file owns the memory; it knows nothing of files, versions or people.

Legend: R rank, I and O widths of a site.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.program import HIGHEST_RANK, LANES, LORA, Site, in_panels

__all__ = ["AdapterMemory", "LowRank"]

_BASE: Final = 0


class LowRank(NamedTuple):
    """What an adapter has for one site: `a` float32 `[R, I]` and `b` float32 `[O, R]`."""

    a: Tensor
    b: Tensor


class AdapterMemory:
    """Room for `count` adapters of rank up to `rank`, numbered from 1; number 0 is the model as it was loaded."""

    def __init__(self, sites: list[Site], *, count: int, rank: int) -> None:
        assert 1 <= rank <= HIGHEST_RANK
        self.sites = {site.name: place for place, site in enumerate(sites)}
        self.rank = rank
        self._sites = sites
        self.table = np.zeros((1 + count, max(1, len(sites))), LORA)
        ranks = -(-rank // LANES) * LANES
        sizes = [(ranks * site.width_in, -(-site.width_out // LANES) * LANES * rank) for site in sites]
        self._memory = torch.empty(count, sum(a + b for a, b in sizes))
        places = np.concatenate([[0], np.cumsum([a + b for a, b in sizes])]).tolist()
        self._places = [(start, start + a) for start, (a, _) in zip(places, sizes, strict=False)]

    @property
    def count(self) -> int:
        """How many adapters fit."""
        return len(self._memory)

    def widths(self, name: str) -> tuple[int, int]:
        """What goes into a site, and what comes out."""
        site = self._sites[self.sites[name]]
        return site.width_in, site.width_out

    def write(
        self, number: int, parts: Mapping[str, LowRank], scaling: float, *, pause: Callable[[], None] = lambda: None
    ) -> None:
        """Put an adapter in place `number`, which no row may use now. Sites whose `b` is zero cost nothing later.

        `pause` is called between sites, for a thread that must not be in the way of others.
        """
        self.clear(number)
        block = self._memory[number - 1]
        for name, part in parts.items():
            pause()
            place = self.sites[name]
            site = self._sites[place]
            if not part.b.any():
                continue
            scale_O = scaling if site.scale_O is None else scaling * site.scale_O[:, None]
            for start, panels in zip(
                self._places[place], (in_panels(part.a), in_panels(part.b * scale_O)), strict=True
            ):
                block[start : start + panels.numel()] = panels.flatten()
            first = block.data_ptr()
            a, b = (first + 4 * start for start in self._places[place])
            self.table[number, place] = (a, b, part.a.shape[0])

    def clear(self, number: int) -> None:
        """Let a place hold nothing. No row may use it now."""
        assert number != _BASE
        self.table[number] = 0
