"""One frame by upstream's own modules: any device, any model, and every row whether it moves or not.

This is the reference for the faster step and what runs where there is none. The codec and the temporal transformer
stream over frames and are masked per row; the depth transformer streams over the codebooks of one frame and starts
afresh in each.

Legend: B rows, K all codebooks, Q model audio codebooks (`dep_q`), D width, V vocabulary.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from server.engine.checkpoint import Checkpoint
from server.engine.full_width import FullWidthStep
from server.engine.params import SamplingParams
from server.engine.rows import StreamingRows
from server.engine.sampling import RowSampling

__all__ = ["DepthStep", "TemporalStep", "UpstreamStep"]


class UpstreamStep(FullWidthStep):
    """All rows' state in upstream's modules, which it puts in streaming mode: a model belongs to one of these."""

    adapters = None
    """Upstream's own adapters are for all rows at once."""

    def __init__(self, checkpoint: Checkpoint, rows: int, device: torch.device) -> None:
        super().__init__(checkpoint, rows, device)
        with torch.inference_mode():
            self._temporal = TemporalStep(checkpoint.lm, rows)
            self._depth = DepthStep(checkpoint.lm)
            self._sampling = RowSampling(**self._sizes._asdict())

    def open(self, row: int, params: SamplingParams, adapter: int, seed: int) -> None:
        """Start a row from nothing."""
        assert adapter == 0, "the engine has refused others"
        row_B = torch.arange(self._rows) == row
        with torch.inference_mode():
            self._codec.reset(row_B)
            self._temporal.reset(row_B)
            self._columns.reset(row_B)
            self._sampling.set(row, params, seed)

    def use_adapter(self, row: int, adapter: int) -> None:
        """Nothing to do: there is but one."""
        assert adapter == 0, f"row {row}: the engine has refused others"

    def close(self, row: int) -> None:
        """Ask nothing more for a row."""
        with torch.inference_mode():
            self._sampling.clear(row)

    def age(self, row: int, frames: int) -> None:
        """Nothing to do: upstream reads its whole ring from the first frame on."""

    def _think(self, moving_B: Tensor) -> float:
        columns, sampling = self._columns, self._sampling
        sampling.begin_frame(columns.step_B)
        hidden, logits = self._temporal(columns.next_input(moving_B), moving_B)
        text, text_logprob = sampling.pick_text(logits)
        thought = time.perf_counter()
        audio = self._depth(text, hidden, sampling.pick_audio)
        sampling.remember(text, moving_B)
        columns.speak(text, audio, text_logprob, moving_B)
        return thought


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
