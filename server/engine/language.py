"""One step of the language model for every row: the temporal transformer, then the depth transformer.

Both are the modules of upstream's `LMModel`. The temporal transformer streams over frames and is masked per
row; the depth transformer streams over the codebooks of one frame and starts afresh in each.

Legend: B rows, K all codebooks, Q model audio codebooks (`dep_q`), D width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from server.engine.rows import StreamingRows

__all__ = ["DepthStep", "TemporalStep"]


class TemporalStep:
    """The temporal transformer of one `moshi.models.LMModel`, which it puts in streaming mode."""

    def __init__(self, lm: Any, rows: int) -> None:
        self._lm = lm
        self._rows = StreamingRows(lm, rows)

    def reset(self, rows_B: Tensor) -> None:
        """Forget the past of rows with True in `rows_B` (bool, CPU)."""
        self._rows.reset(rows_B)

    def __call__(self, tokens_BK1: Tensor, moving_B: Tensor) -> tuple[Tensor, Tensor]:
        """Read one column of tokens. Returns the hidden state `[B, 1, D]` and text logits float32 `[B, V]`."""
        self._rows.select(moving_B)
        hidden_B1D, logits_B11V = self._lm.forward_text(tokens_BK1)
        return hidden_B1D, logits_B11V[:, 0, 0].float()


class DepthStep:
    """The depth transformer of one `moshi.models.LMModel`."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def __call__(self, text_B: Tensor, hidden_B1D: Tensor, pick: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Speak one frame, int64 `[B, Q]`, codebook after codebook.

        `pick(codebook, logits)` gets float32 `[B, V]` and returns int64 `[B]`.
        """
        token_B, said = text_B, []
        # Entered anew each frame: upstream's reset of per-step attention breaks at more than one row.
        with self._lm.depformer.streaming(len(text_B)):
            for codebook in range(self._lm.dep_q):
                logits = self._lm.forward_depformer(codebook, token_B[:, None, None], hidden_B1D)
                token_B = pick(codebook, logits[:, 0, 0].float())
                said.append(token_B)
        return torch.stack(said, dim=1)
