"""One frame on a GPU: language model and codec on kernels, recorded as CUDA graphs.

A step has the full width, and a row that does not move costs next to nothing in it: what a step costs follows the
weights, which are read once for all rows, and the age of the calls. A row's numbers do not depend on what others do.
Where kernels are interpreted (see `kernels.dialect`) the same code runs on a CPU, which is how it is tested.

The graphs are recorded once, when the engine is made, and replayed from then on; adapters, parameters and rows change
by writing into memory that they read.

Legend: B rows, K all codebooks.
"""

import time
from typing import Any, Final

import torch
from moshi.utils.compile import no_compile
from torch import Tensor, nn

from kernels import dialect
from kernels.adapter_bank import AdapterBank
from kernels.cpu import UnsupportedModelError
from server.engine.checkpoint import Checkpoint
from server.engine.cuda_codec import KernelCodec
from server.engine.cuda_graph import on_device, recorded
from server.engine.cuda_language import KernelLanguage
from server.engine.cuda_sampling import KernelSampling
from server.engine.full_width import Codec, FullWidthStep
from server.engine.params import SamplingParams

__all__ = ["HIGHEST_RANK", "KernelStep"]

HIGHEST_RANK: Final = 128


class KernelStep(FullWidthStep):
    """All rows' state, and the step over it. A model belongs to one of these.

    `kept` is what the language model's rings hold: any float type, or int8, so that nearly twice as many calls fit;
    None is the model's own type. The codec's rings, a hundredth of those, have the codec's.
    Raises `UnsupportedModelError` for a model outside Moshi's family and where Triton is not installed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: int,
        device: torch.device,
        *,
        max_adapters: int = 0,
        max_rank: int = HIGHEST_RANK,
        kept: torch.dtype | None = None,
    ) -> None:
        if not dialect.PRESENT:
            raise UnsupportedModelError("kernels without Triton; install the version that belongs to this torch")
        super().__init__(checkpoint, rows, device)
        lm = checkpoint.lm
        # Not in inference mode: adapters are written into it by others.
        self._bank = _bank(lm, rows, max_adapters, max_rank) if max_adapters else None
        with torch.inference_mode(), no_compile(), on_device(device):
            self.sampling = KernelSampling(**self._sizes._asdict())
            self.language = KernelLanguage(
                lm, self.sampling, self._bank, rows=rows, kept=kept or lm.text_linear.weight.dtype
            )
            self.think = recorded(self.language.step, device)
            """Takes `language` one step, by what lies in its `column_BK` and `moving_B`. In it no row moves yet."""

    @property
    def adapters(self) -> Any:
        """An `AdapterBank`, which has the methods of `kernels.cpu.AdapterMemory`; None without room for any."""
        return self._bank

    def use_adapter(self, row: int, adapter: int) -> None:
        """From its next step on, a row speaks with this adapter; its past stays what it was."""
        with torch.inference_mode():
            self.language.adapter_B[row] = adapter

    def open(self, row: int, params: SamplingParams, adapter: int, seed: int) -> None:
        """Start a row from nothing. Its rings are not cleared: what was not written is not read."""
        row_B = torch.arange(self._rows) == row
        with torch.inference_mode():
            self._codec.reset(row_B)
            self._columns.reset(row_B)
            self.sampling.set(row, params, seed)
            self.language.offset_B[row] = 0
        self.use_adapter(row, adapter)

    def close(self, row: int) -> None:
        """Nothing to do: a row that does not move is not read."""

    def age(self, row: int, frames: int) -> None:
        """Let an open row cost what a call of `frames` frames costs. What it then says means nothing."""
        with torch.inference_mode():
            self.language.offset_B[row] = frames
            for transformer in self.codec.transformers:
                transformer.age(row, frames)

    @property
    def codec(self) -> KernelCodec:
        """Both halves of the codec."""
        assert isinstance(self._codec, KernelCodec)
        return self._codec

    def _make_codec(self, mimi: Any) -> Codec:
        return KernelCodec(mimi, self._rows)

    def _think(self, moving_B: Tensor) -> float:
        """The whole language model counts as `temporal`: the host only starts the graph."""
        columns, sampling, language = self._columns, self.sampling, self.language
        language.column_BK.copy_(columns.next_input(moving_B)[..., 0])
        language.moving_B.copy_(moving_B)
        self.think()
        columns.speak(sampling.token_BK[:, 0], sampling.token_BK[:, 1:], sampling.logprob_B, moving_B)
        return time.perf_counter()


def _bank(lm: Any, rows: int, count: int, rank: int) -> AdapterBank:
    layers = {
        name: (module.in_features, module.out_features)
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear)
    }
    weight = lm.text_linear.weight
    return AdapterBank(layers, count=count, rank=rank, rows=rows, dtype=weight.dtype, device=weight.device)
