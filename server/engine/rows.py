"""One upstream streaming module, driven row by row; and back to how it was.

The `moshi` package keeps a streaming state of fixed batch width on each module and lets a mask decide which
rows move. This file owns the mask and the per-row reset; it knows nothing of what the module computes.
"""

from typing import Any

import torch
from moshi.modules.streaming import StreamingModule
from torch import Tensor, nn

__all__ = ["StreamingRows", "stop_streaming"]


class StreamingRows:
    """Puts `module` (a `moshi` `StreamingModule`) in streaming mode for good, `rows` wide.

    Setting the mask walks every submodule, so it happens only when the mask differs from the last one.
    """

    def __init__(self, module: Any, rows: int) -> None:
        self._module = module
        self._mask: Tensor | None = None
        module.streaming_forever(rows)

    def select(self, moving_B: Tensor) -> None:
        """Let only rows with True in `moving_B` (bool, on the CPU) move in the calls that follow."""
        if self._mask is None or not torch.equal(self._mask, moving_B):
            self._module.set_exec_mask(moving_B)
            self._mask = moving_B.clone()

    def reset(self, rows_B: Tensor) -> None:
        """Forget the past of rows with True in `rows_B` (bool, on the CPU); the others keep theirs."""
        self._module.reset_streaming(rows_B)
        self._mask = None  # upstream's reset also switches the row's mask back on


def stop_streaming(module: nn.Module) -> None:
    """Take every part of `module` out of streaming mode, whoever put it there; its state is forgotten."""
    for part in module.modules():
        if isinstance(part, StreamingModule):
            part._streaming_state = None  # noqa: SLF001 - upstream has no way out for what streams for ever
