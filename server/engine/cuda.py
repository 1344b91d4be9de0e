"""One frame on a GPU: the language model as one CUDA graph of kernels, the codec by upstream's modules.

A step has the full width, and a row that does not move costs next to nothing in it: what a step costs follows the
weights, which are read once for all rows, and the age of the calls. A row's numbers do not depend on what others do.
Where kernels are interpreted (see `kernels.dialect`) the same code runs on a CPU, which is how it is tested.

The graph is recorded once, when the engine is made, and replayed from then on; adapters, parameters and rows change by
writing into memory that it reads.

Legend: B rows, K all codebooks.
"""

import time
from typing import Any, Final

import torch
from torch import Tensor, nn

from kernels import dialect
from kernels.adapter_bank import AdapterBank
from kernels.cpu import UnsupportedModelError
from server.engine.checkpoint import Checkpoint
from server.engine.cuda_language import KernelLanguage
from server.engine.cuda_sampling import KernelSampling
from server.engine.full_width import FullWidthStep
from server.engine.params import SamplingParams

__all__ = ["HIGHEST_RANK", "KernelStep"]

HIGHEST_RANK: Final = 128
_WARM_UPS: Final = 2


class KernelStep(FullWidthStep):
    """All rows' state, and the step over it. A model belongs to one of these.

    `int8_ring` keeps keys and values as int8, so that nearly twice as many calls fit. Raises `UnsupportedModelError`
    for a model outside Moshi's family and where Triton is not installed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: int,
        device: torch.device,
        *,
        max_adapters: int = 0,
        max_rank: int = HIGHEST_RANK,
        int8_ring: bool = False,
    ) -> None:
        if not dialect.PRESENT:
            raise UnsupportedModelError("kernels without Triton; install the version that belongs to this torch")
        super().__init__(checkpoint, rows, device)
        lm = checkpoint.lm
        # Not in inference mode: adapters are written into it by others.
        self._bank = _bank(lm, rows, max_adapters, max_rank) if max_adapters else None
        with torch.inference_mode():
            self._sampling = KernelSampling(**self._sizes._asdict())
            self._language = KernelLanguage(lm, self._sampling, self._bank, rows=rows, int8_ring=int8_ring)
            self._graph = self._record() if device.type == "cuda" else None

    @property
    def adapters(self) -> Any:
        """An `AdapterBank`, which has the methods of `kernels.cpu.AdapterMemory`; None without room for any."""
        return self._bank

    def use_adapter(self, row: int, adapter: int) -> None:
        """From its next step on, a row speaks with this adapter; its past stays what it was."""
        with torch.inference_mode():
            self._language.adapter_B[row] = adapter

    def open(self, row: int, params: SamplingParams, adapter: int, seed: int) -> None:
        """Start a row from nothing. Its ring is not cleared: what was not written is not read."""
        row_B = torch.arange(self._rows) == row
        with torch.inference_mode():
            self._codec.reset(row_B)
            self._columns.reset(row_B)
            self._sampling.set(row, params, seed)
            self._language.offset_B[row] = 0
        self.use_adapter(row, adapter)

    def close(self, row: int) -> None:
        """Nothing to do: a row that does not move is not read."""

    def age(self, row: int, frames: int) -> None:
        """Let an open row cost what a call of `frames` frames costs. What it then says means nothing."""
        with torch.inference_mode():
            self._language.offset_B[row] = frames

    def _think(self, moving_B: Tensor) -> float:
        """The whole language model counts as `temporal`: the host only starts the graph."""
        columns, sampling, language = self._columns, self._sampling, self._language
        language.column_BK.copy_(columns.next_input(moving_B)[..., 0])
        language.moving_B.copy_(moving_B)
        if self._graph is None:
            language.step()
        else:
            self._graph.replay()
        columns.speak(sampling.token_BK[:, 0], sampling.token_BK[:, 1:], sampling.logprob_B, moving_B)
        return time.perf_counter()

    def _record(self) -> Any:
        """The language model's step as a CUDA graph. While it is recorded no row moves, so no row changes."""
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):  # compiles every kernel and lets the libraries take their memory
                self._language.step()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._language.step()
        return graph


def _bank(lm: Any, rows: int, count: int, rank: int) -> AdapterBank:
    layers = {
        name: (module.in_features, module.out_features)
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear)
    }
    weight = lm.text_linear.weight
    return AdapterBank(layers, count=count, rank=rank, rows=rows, dtype=weight.dtype, device=weight.device)
