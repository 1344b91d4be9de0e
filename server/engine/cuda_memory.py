"""How many callers a GPU's memory holds beside the model that lies in it already: arithmetic, before anything is made.

A caller takes rings of keys and values, for ever, whether anybody talks or not. This file knows what those and adapters
take; what else a GPU needs is a share that stays free.
"""

from typing import Any, Final

import torch
from torch import nn

from server.engine.checkpoint import Checkpoint
from server.engine.cuda_rings import ring_bytes
from server.errors import SlotRoomError

__all__ = ["check_room", "fitting", "row_bytes"]

_RESERVED: Final = 0.06
"""Share of all memory for the driver, graphs, libraries and fragments."""


def check_room(
    checkpoint: Checkpoint, slots: int, device: torch.device, *, kept: torch.dtype, max_adapters: int, rank: int
) -> None:
    """Raise `SlotRoomError` when a GPU has no room for so many slots, whose rings hold `kept`."""
    if device.type != "cuda":
        return
    free, total = _free_and_total(device)
    fits = fitting(checkpoint, free, total, kept=kept, max_adapters=max_adapters, rank=rank)
    if slots > fits:
        gigabytes = row_bytes(checkpoint, kept) / 1e9
        raise SlotRoomError(
            got=f"{slots} slots of {gigabytes:.2g} GB on {device}, of which {free / 1e9:.3g} GB are free",
            expected=f"at most {fits}",
            remedy="ask for fewer slots, or let keys and values be int8 (--cache-dtype int8), or use a larger GPU",
            fits=fits,
        )


def fitting(checkpoint: Checkpoint, free: int, total: int, *, kept: torch.dtype, max_adapters: int, rank: int) -> int:
    """How many slots fit into `free` bytes, of `total` that the GPU has; 0 when none does."""
    lm: Any = checkpoint.lm
    dtype: torch.dtype = lm.text_linear.weight.dtype
    adapters = max_adapters * rank * dtype.itemsize * sum(
        module.in_features + module.out_features for module in lm.modules() if isinstance(module, nn.Linear)
    )  # fmt: skip
    checked = ring_bytes(lm.transformer, dtype)  # upstream's, for as long as the kernels are compared with it
    room = free - _RESERVED * total - adapters - checked
    return max(0, int(room // row_bytes(checkpoint, kept)))


def row_bytes(checkpoint: Checkpoint, kept: torch.dtype) -> int:
    """Bytes of one slot's rings: the language model's, which hold `kept`, and the codec's two."""
    mimi: Any = checkpoint.mimi
    codec = (part for part in (mimi.encoder_transformer, mimi.decoder_transformer) if part is not None)
    halves = sum(ring_bytes(part.transformer, next(part.parameters()).dtype) for part in codec)
    return ring_bytes(checkpoint.lm.transformer, kept) + halves


def _free_and_total(device: torch.device) -> tuple[int, int]:
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(free), int(total)
