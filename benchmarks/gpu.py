"""What a GPU really does: kernels, the recorded step against the `moshi` package's modules, and swaps under load.

    python -m benchmarks.gpu --json > gpu.json

Where `kernels.roofline` says "modelled", this says "measured": run it on the card in question and keep the JSON. The
model is the embedded one, a folder, `hf:owner/name`, or `random-7b`: Moshi's real sizes with random weights, which
needs no download and costs what the real one costs. Without a GPU there is nothing to measure and it says so.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from moshi.models import loaders
from torch import nn

from benchmarks.gpu_kernels import sweep
from benchmarks.report import Row, compare, note, parser, publish
from kernels import dialect
from kernels.cpu import LowRank
from kernels.roofline import MINI, MOSHI_7B, Model
from server.engine import SamplingParams
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.cuda import KernelStep
from server.engine.frames import FrameStep
from server.engine.upstream import UpstreamStep

__all__ = ["main"]

_RANDOM: Final = "random-7b"
_FRAME_MS: Final = 80.0
_WARM_UPS: Final = 3
_AGE: Final = 562
_RANK: Final = 16
_NO_GPU: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 0, or 2 where there is no GPU."""
    options = parser("gpu", __doc__)
    options.set_defaults(checkpoint=_RANDOM)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64], metavar="N", help="widths")
    options.add_argument(
        "--ages", type=int, nargs="+", default=[50, 562, 2999], metavar="N", help="of calls, in frames"
    )
    options.add_argument("--ticks", type=int, default=300, metavar="N", help="measured of each kind (%(default)s)")
    options.add_argument("--swaps", type=int, default=50, metavar="N", help="adapters written (%(default)s)")
    given = options.parse_args(arguments)
    if not torch.cuda.is_available() and not dialect.INTERPRETED:
        note("no GPU was found: expected one that torch can use; run this on the machine whose figures are wanted")
        return _NO_GPU
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    publish("gpu", list(_measured(given, device)), as_json=given.json)
    return 0


def _measured(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        note(f"{card.name}, {card.total_memory / 1e9:.0f} GB")
        yield compare("gpu_memory_gb", card.total_memory / 1e9, "GB", better="higher", remark=card.name)
    yield from sweep(_sizes(given.checkpoint), device, rows=given.rows, ages=given.ages, repeats=min(100, given.ticks))
    for rows in given.rows:
        yield from _ticks(given, device, rows)
    yield from _swaps(given, device, max(given.rows))


def _sizes(checkpoint: str) -> Model:
    return MOSHI_7B if checkpoint == _RANDOM or checkpoint.startswith("hf:") else MINI


def _checkpoint(source: str, device: torch.device) -> Checkpoint:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if source != _RANDOM:
        return load_checkpoint(source, device=device, dtype=dtype)
    lm = loaders.get_moshi_lm(None, None, device=device, dtype=dtype).eval()
    mimi = loaders.get_mimi(None, None, device=device).eval()
    return Checkpoint(
        name=_RANDOM, lm_path=Path(_RANDOM), lm=lm, mimi=mimi, text_tokenizer=None, sampling=SamplingParams()
    )


def _ticks(given: argparse.Namespace, device: torch.device, rows: int) -> Iterator[Row]:
    """Ours and upstream's at one width, one after the other: two 7 B models and their rings may not fit at once."""
    ours = _tick_seconds(KernelStep(_checkpoint(given.checkpoint, device), rows, device), given, rows, device)
    _give_back(device)
    theirs: list[float] = []
    remark = ""
    try:
        theirs = _tick_seconds(UpstreamStep(_checkpoint(given.checkpoint, device), rows, device), given, rows, device)
    except torch.OutOfMemoryError:
        remark = "upstream's rings do not fit"
    _give_back(device)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        peer = 1000 * _quantile(theirs, share) if theirs else None
        yield compare(
            f"tick_{name}_ms_rows_{rows}",
            1000 * _quantile(ours, share),
            "ms",
            better="lower",
            peer="moshi",
            peer_value=peer,
            goal=_FRAME_MS if name == "p99" else None,
            remark=remark,
        )


def _tick_seconds(step: FrameStep, given: argparse.Namespace, rows: int, device: torch.device) -> list[float]:
    """Seconds of each whole tick, sound in to sound on the host, of calls `_AGE` frames old."""
    _open(step, rows)
    return _stepped(step, rows, given.ticks, device)


def _open(step: FrameStep, rows: int, adapter: int = 0) -> None:
    for row in range(rows):
        step.open(row, SamplingParams(), adapter, row)
        step.age(row, _AGE)


def _stepped(step: FrameStep, rows: int, ticks: int, device: torch.device) -> list[float]:
    pcm = 0.1 * torch.randn(rows, _frame_size(step))
    moving = torch.ones(rows, dtype=torch.bool)
    seconds = []
    for tick in range(_WARM_UPS + ticks):
        began = time.perf_counter()
        step.step(pcm, moving)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if tick >= _WARM_UPS:
            seconds.append(time.perf_counter() - began)
    return seconds


def _frame_size(step: FrameStep) -> int:
    mimi: Any = step._codec._mimi  # type: ignore[attr-defined] # noqa: SLF001 - both steps have one
    return int(mimi.frame_size)


def _swaps(given: argparse.Namespace, device: torch.device, rows: int) -> Iterator[Row]:
    """Windows in which a thread writes adapters beside the step, between windows in which none does."""
    checkpoint = _checkpoint(given.checkpoint, device)
    step = KernelStep(checkpoint, rows, device, max_adapters=2, max_rank=_RANK)
    bank = step.adapters
    bank.write(1, _adapter(checkpoint.lm), 2.0)
    _open(step, rows, adapter=1)
    quiet: list[float] = []
    busy: list[float] = []
    flips: list[float] = []
    windows = max(1, min(10, given.swaps))
    for window in range(windows):
        quiet += _stepped(step, rows, max(1, given.ticks // windows), device)
        swaps = given.swaps // windows + (window < given.swaps % windows)
        writing = threading.Thread(target=_write, args=(bank, _adapter(checkpoint.lm), swaps))
        writing.start()
        while writing.is_alive():
            busy += _stepped(step, rows, 1, device)
        writing.join()
        flips += [_flip(step, row, 1 + window % 2) for row in range(rows)]
    late_quiet, late_busy = (sum(1000 * each > _FRAME_MS for each in found) for found in (quiet, busy))
    expected = late_quiet / len(quiet) * len(busy)
    peer, remark = "windows without", f"{len(busy)} and {len(quiet)} ticks"
    yield compare("swaps", given.swaps, "adapters", better="higher")
    yield compare("late_frames_caused", max(0.0, late_busy - expected), "ticks", better="lower", goal=0, remark=remark)
    values = 1000 * _quantile(busy, 0.99), 1000 * _quantile(quiet, 0.99)
    yield compare("tick_p99_ms_while_swapping", values[0], "ms", better="lower", peer=peer, peer_value=values[1])
    yield compare("flip_ms_max", 1000 * max(flips), "ms", better="lower")


def _write(bank: Any, parts: dict[str, LowRank], count: int) -> None:
    for _ in range(count):
        bank.write(2, parts, 2.0)


def _flip(step: KernelStep, row: int, adapter: int) -> float:
    began = time.perf_counter()
    step.use_adapter(row, adapter)
    seconds = time.perf_counter() - began
    step.use_adapter(row, 1)  # place 2 is written next: nobody may use it then
    return seconds


def _adapter(lm: nn.Module) -> dict[str, LowRank]:
    """A small random adapter of every linear layer, on the host, as it comes from a file."""
    return {
        name: LowRank(
            torch.randn(_RANK, module.in_features) / module.in_features**0.5,
            1e-3 * torch.randn(module.out_features, _RANK),
        )
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear)
    }


def _quantile(values: Sequence[float], share: float) -> float:
    return (
        statistics.quantiles(values, n=1000, method="inclusive")[round(1000 * share) - 1] if values[1:] else values[0]
    )


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    raise SystemExit(main())
