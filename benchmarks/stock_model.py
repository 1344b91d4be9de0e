"""The `moshi` package's model, driven as its own server drives it, in a batch: the peer of the engine.

Greedy, in float32, so that its tokens can be compared with ours one by one.
"""

import json
import time
from typing import Any, Final

import msgspec
import torch
from moshi.models import LMGen, loaders
from moshi.utils.compile import no_compile
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.servers import checkpoint_folder

__all__ = ["Size", "StockModel", "StockStep"]

_UNTIL_ALL_RUNS: Final = 3
"""Nothing is decoded in the first frames."""


class StockStep(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One frame of every row."""

    tokens: Tensor | None
    """int64 `[rows, 1 + dep_q]`; None while nothing is out."""
    stages: dict[str, float]
    """Seconds of encode, language (temporal and depth) and decode."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What one frame needs at least."""

    weights: int
    """Parameters that are read once a frame, whatever the rows."""
    multiply_adds: int
    """Of one row, without attention to its past."""
    cache_values: int
    """Numbers of keys and values of one row, for one frame of its past: each is read, and multiplied once."""


class StockModel:
    """`MimiModel` and `LMGen`, both streaming `rows` conversations at once."""

    def __init__(self, checkpoint: str, rows: int) -> None:
        self._mimi, self._lm = _load(checkpoint)
        self._lm_gen = LMGen(self._lm, use_sampling=False)
        self._rows = rows
        self._frame = 0
        with torch.no_grad(), no_compile():
            self._mimi.streaming_forever(rows)
            self._lm_gen.streaming_forever(rows)

    def step(self, pcm: Tensor) -> StockStep:
        """Hear float32 `[rows, frame_size]` and speak. The loop of `moshi.server`."""
        with torch.no_grad(), no_compile():
            began = time.perf_counter()
            codes = self._mimi.encode(pcm[:, None])
            if self._frame == 0:
                self._mimi.reset_streaming()
            self._frame += 1
            encoded = time.perf_counter()
            out = self._lm_gen.step(codes)
            spoke = time.perf_counter()
            if out is not None:
                self._mimi.decode(out[:, 1:])
            done = time.perf_counter()
        stages = {"encode": encoded - began, "language": spoke - encoded, "decode": done - spoke}
        return StockStep(tokens=None if out is None else out[:, :, 0], stages=stages)

    def size(self, pcm: Tensor) -> Size:
        """Count what a frame needs, by stepping; for a model of one row. Attention is left to `cache_values`."""
        for _ in range(_UNTIL_ALL_RUNS):
            self.step(pcm)
        with FlopCounterMode(display=False) as counter:
            self.step(pcm)
        parameters = [*self._mimi.parameters(), *self._lm.parameters()]
        embedded = _tables(self._mimi) + _tables(self._lm)
        heads = self._lm.transformer.layers
        return Size(
            weights=sum(each.numel() for each in parameters) - embedded,
            multiply_adds=counter.get_total_flops() // 2,
            cache_values=2 * len(heads) * self._lm.dim,
        )


def _load(checkpoint: str) -> tuple[Any, Any]:
    folder = checkpoint_folder(checkpoint)
    names = json.loads((folder / "config.json").read_text())
    info = loaders.CheckpointInfo.from_hf_repo(
        str(folder),
        moshi_weights=folder / names["moshi_name"],
        mimi_weights=folder / names["mimi_name"],
        tokenizer=folder / names["tokenizer_name"],
        config_path=folder / "config.json",
        mimi_config_path=folder / names["mimi_config_name"],
    )
    return info.get_mimi(), info.get_moshi(dtype=torch.float32)


def _tables(model: torch.nn.Module) -> int:
    """Parameters of embedding tables, of which a frame reads a row."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
