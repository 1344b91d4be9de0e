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

from kernels.cpu.build import load_library
from kernels.cpu.program import HIGHEST_RANK, LANES, LORA, Site

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
        most = sum(_floats(rank, site.width_in) + _floats(site.width_out, rank) for site in sites)
        self._memory = torch.empty(count, most)

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

        A site's numbers lie one behind the other, and sites in the order in which a step comes to them, so that what is
        read next is next in memory. They are copied without the interpreter's lock. `pause` is called between sites,
        for a thread that must not be in the way of others.
        """
        self.clear(number)
        free = self._memory[number - 1].data_ptr()
        for name in sorted(parts, key=self.sites.__getitem__):
            pause()
            part, place = parts[name], self.sites[name]
            site = self._sites[place]
            a, b = free, free + 4 * _floats(part.a.shape[0], site.width_in)
            scales = None if site.scale_O is None else (scaling * site.scale_O).float().contiguous()
            if not _stage(part.b, scales, scaling, b):
                continue
            _stage(part.a, None, 1.0, a)
            self.table[number, place] = (a, b, part.a.shape[0])
            free = b + 4 * _floats(site.width_out, part.a.shape[0])

    def clear(self, number: int) -> None:
        """Let a place hold nothing. No row may use it now."""
        assert number != _BASE
        self.table[number] = 0


def _floats(width_out: int, width_in: int) -> int:
    """How many a part takes in panels."""
    return -(-width_out // LANES) * LANES * width_in


def _stage(weight_OI: Tensor, scale_O: Tensor | None, scale: float, to: int) -> bool:
    """Write a part's panels (see `program.in_panels`) at an address. Returns whether any number is not zero."""
    weight_OI = weight_OI.float().contiguous()
    width_out, width_in = weight_OI.shape
    scales = None if scale_O is None else scale_O.data_ptr()
    staged: int = load_library().stage_panels(weight_OI.data_ptr(), width_out, width_in, scales, scale, to)
    return staged != 0
