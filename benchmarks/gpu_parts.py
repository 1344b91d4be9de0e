"""What `benchmarks.gpu` measures, part by part, each in a process of its own: one that fails takes no other along.

    python -m benchmarks.gpu_parts ticks --rows 32

Every figure is written as one line of JSON on standard output as soon as it is known, so that what was measured before
a crash, or before time was up, is kept. It knows no report and no clock but its own.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
import torch
from moshi.models import loaders
from torch import nn

from benchmarks.gpu_kernels import sweep
from benchmarks.report import Row, compare
from kernels.cpu import LowRank
from kernels.roofline import CARDS, MINI, MOSHI_7B, Card, Model, tick_s
from server.engine import SamplingParams
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.cuda import KernelStep
from server.engine.cuda_check import disagreement
from server.engine.upstream import UpstreamStep

__all__ = ["PARTS", "RANDOM", "Device", "arguments", "main", "sizes"]

RANDOM: Final = "random-7b"
_FRAME_MS: Final = 80.0
_WARM_UPS: Final = 3
_RANK: Final = 16
_WINDOWS: Final = 10
_ASK: Final = ("nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader")
_ASK_S: Final = 10.0

Step = KernelStep | UpstreamStep


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were taken on, beside the report's `machine`."""

    name: str
    memory_gb: float
    capability: str
    driver: str
    """Driver, power limit and highest clock, as `nvidia-smi` says them; empty where it does not."""
    cuda: str
    triton: str
    interpreted: bool
    """True on a CPU: then no time here is a GPU's."""


def main(given: Sequence[str] | None = None) -> int:
    """Measure one part. Exceptions are the caller's to see; the exit status is then not 0."""
    options = arguments(argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts"))
    options.add_argument("part", choices=sorted(PARTS))
    options.add_argument("--rows", type=int, default=1, metavar="N", help="callers in a step")
    options.add_argument("--widths", type=int, nargs="+", default=[1, 16, 32, 64], metavar="N", help="of kernels")
    chosen = options.parse_args(given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for made in PARTS[chosen.part](chosen, device):
        kind = "device" if isinstance(made, Device) else "row"
        print(json.dumps({kind: msgspec.to_builtins(made)}), flush=True)
    return 0


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what the parts share with the benchmark that runs them."""
    parser.add_argument("--checkpoint", default=RANDOM, help="random-7b, mini, a folder or hf:NAME (%(default)s)")
    parser.add_argument("--ages", type=int, nargs="+", default=[50, 562, 2999], metavar="N", help="of calls, in frames")
    parser.add_argument("--age", type=int, default=562, metavar="N", help="of the calls in a tick (%(default)s)")
    parser.add_argument("--ticks", type=int, default=300, metavar="N", help="measured of each kind (%(default)s)")
    parser.add_argument("--swaps", type=int, default=50, metavar="N", help="adapters written (%(default)s)")
    parser.add_argument("--measure-s", type=float, default=20.0, metavar="S", help="longest for one kind of tick")
    return parser


def _device(_given: argparse.Namespace, device: torch.device) -> Iterator[Device]:
    on_gpu = device.type == "cuda"
    card = torch.cuda.get_device_properties(device) if on_gpu else None
    yield Device(
        name=card.name if card else "CPU, Triton's interpreter",
        memory_gb=round(card.total_memory / 1e9, 1) if card else 0.0,
        capability=f"{card.major}.{card.minor}" if card else "",
        driver=_driver() if card else "",
        cuda=torch.version.cuda or "",
        triton=_version("triton"),
        interpreted=not on_gpu,
    )


def _driver() -> str:
    try:
        said = subprocess.run(_ASK, capture_output=True, text=True, timeout=_ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.partition("\n")[0].strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _check(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Whether kernels agree with upstream on this very GPU, and what recording them takes: both kinds of ring."""
    for name, kept in (("own", None), ("int8", torch.int8)):
        checkpoint = _checkpoint(given.checkpoint, device)
        began = time.perf_counter()
        step = KernelStep(checkpoint, min(2, given.rows), device, max_adapters=1, max_rank=_RANK, kept=kept)
        _wait(device)
        yield compare(f"graph_capture_s_{name}", time.perf_counter() - began, "s", better="lower",
                      remark="compiling included the first time")  # fmt: skip
        problem = disagreement(step, checkpoint)
        yield compare(f"kernels_agree_{name}", float(not problem), "1 or 0", better="higher", goal=1, remark=problem)
        del step, checkpoint
        _give_back(device)


def _kernels(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    yield from sweep(
        sizes(given.checkpoint), device, rows=given.widths, ages=given.ages, repeats=min(100, max(1, given.ticks))
    )


def _ticks(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Ours and upstream's, one after the other: two 7 B models and their rings may not fit at once."""
    rows = given.rows
    ours, kept = _widest(given, device)
    seconds = _aged_ticks(ours, given, device)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    modelled = _modelled_ms(given, device, int8=kept == "int8")
    remark = f"{kept} rings, {len(seconds)} ticks" + (f", modelled {modelled:.3g} ms" if modelled else "")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield _tick_row(name, rows, 1000 * _quantile(seconds, share), None, remark)
    if memory is not None:
        yield compare(f"memory_gb_rows_{rows}", memory, "GB", better="lower", remark=f"{kept} rings")
    del ours
    _give_back(device)
    try:
        step = UpstreamStep(_checkpoint(given.checkpoint, device), rows, device)
        theirs = _aged_ticks(step, given, device)
    except torch.OutOfMemoryError:
        theirs, remark = [], remark + ", upstream's rings do not fit"
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        peer = 1000 * _quantile(theirs, share) if theirs else None
        yield _tick_row(name, rows, 1000 * _quantile(seconds, share), peer, remark)


def _tick_row(name: str, rows: int, value: float, peer: float | None, remark: str) -> Row:
    goal = _FRAME_MS if name == "p99" else None
    return compare(
        f"tick_{name}_ms_rows_{rows}", value, "ms", better="lower", peer="moshi", peer_value=peer, goal=goal,
        remark=remark,
    )  # fmt: skip


def _widest(given: argparse.Namespace, device: torch.device, *, max_adapters: int = 0) -> tuple[KernelStep, str]:
    """The step with rings of the model's own type, or, where those do not fit, of int8; and which."""

    def make(kept: torch.dtype | None) -> KernelStep:
        checkpoint = _checkpoint(given.checkpoint, device)
        return KernelStep(checkpoint, given.rows, device, max_adapters=max_adapters, max_rank=_RANK, kept=kept)

    try:
        return make(None), "own"
    except torch.OutOfMemoryError:
        pass  # the exception holds what was made; let go of it first
    _give_back(device)
    return make(torch.int8), "int8"


def _swaps(given: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Windows in which a thread writes adapters beside the step, between windows in which none does."""
    step, kept = _widest(given, device, max_adapters=2)
    bank = step.adapters
    parts = _adapter({name: bank.widths(name) for name in bank.sites})
    bank.write(1, parts, 2.0)
    _open(step, given, device, adapter=1)
    quiet: list[float] = []
    busy: list[float] = []
    flips: list[float] = []
    windows = max(1, min(_WINDOWS, given.swaps))
    ends, done = time.monotonic() + given.measure_s, 0
    for window in range(windows):
        if window and time.monotonic() > ends:
            break
        quiet += _stepped(step, given, device, ticks=max(1, given.ticks // windows), seconds=given.measure_s / windows)
        swaps = given.swaps // windows + (window < given.swaps % windows)
        writing = threading.Thread(target=_write, args=(bank, parts, swaps))
        writing.start()
        busy += _stepped(step, given, device, ticks=1)  # even when all was written before the first look
        while writing.is_alive():
            busy += _stepped(step, given, device, ticks=1)
        writing.join()
        done += swaps
        flips += [_flip(step, row, 1 + window % 2) for row in range(given.rows)]
    late_quiet, late_busy = (sum(1000 * each > _FRAME_MS for each in found) for found in (quiet, busy))
    caused = max(0.0, late_busy - late_quiet / len(quiet) * len(busy))
    remark = f"{given.rows} rows, {kept} rings, {len(busy)} ticks with and {len(quiet)} without"
    yield compare("swaps", done, "adapters", better="higher")
    yield compare("late_frames_caused", caused, "ticks", better="lower", goal=0, remark=remark)
    values = 1000 * _quantile(busy, 0.99), 1000 * _quantile(quiet, 0.99)
    yield compare("tick_p99_ms_while_swapping", values[0], "ms", better="lower", peer="windows without",
                  peer_value=values[1], remark=remark)  # fmt: skip
    yield compare("flip_ms_max", 1000 * max(flips), "ms", better="lower", remark="the host's time for one row")


def _write(bank: Any, parts: dict[str, LowRank], count: int) -> None:
    for _ in range(count):
        bank.write(2, parts, 2.0)


def _flip(step: KernelStep, row: int, adapter: int) -> float:
    began = time.perf_counter()
    step.use_adapter(row, adapter)
    seconds = time.perf_counter() - began
    step.use_adapter(row, 1)  # place 2 is written next: nobody may use it then
    return seconds


def _adapter(widths: Mapping[str, tuple[int, int]]) -> dict[str, LowRank]:
    """A small random adapter of every linear layer, on the host, as it comes from a file."""
    return {
        name: LowRank(torch.randn(_RANK, width_in) / width_in**0.5, 1e-3 * torch.randn(width_out, _RANK))
        for name, (width_in, width_out) in widths.items()
    }


def _aged_ticks(step: Step, given: argparse.Namespace, device: torch.device) -> list[float]:
    """Seconds of each whole tick, sound in to sound on the host, of calls `--age` frames old."""
    _open(step, given, device)
    return _stepped(step, given, device, ticks=given.ticks, seconds=given.measure_s)


def _open(step: Step, given: argparse.Namespace, device: torch.device, adapter: int = 0) -> None:
    for row in range(given.rows):
        step.open(row, SamplingParams(), adapter, row)
        step.age(row, given.age)
    _stepped(step, given, device, ticks=_WARM_UPS)


def _stepped(
    step: Step, given: argparse.Namespace, device: torch.device, *, ticks: int, seconds: float = float("inf")
) -> list[float]:
    """Seconds of so many ticks, fewer when `seconds` are over; at least one."""
    pcm = 0.1 * torch.randn(given.rows, step.frame_size)
    moving = torch.ones(given.rows, dtype=torch.bool)
    found: list[float] = []
    ends = time.perf_counter() + seconds
    while not found or (len(found) < ticks and time.perf_counter() < ends):
        began = time.perf_counter()
        step.step(pcm, moving)
        _wait(device)
        found.append(time.perf_counter() - began)
    return found


def sizes(checkpoint: str) -> Model:
    """The sizes of a checkpoint's model, without its weights; `hf:` is taken to be Moshi 7B."""
    if checkpoint == RANDOM or checkpoint.startswith("hf:"):
        return MOSHI_7B
    if checkpoint == "mini":
        return MINI
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    same = {"heads": "num_heads", "layers": "num_layers", "audio_codebooks": "n_q", "depth_steps": "dep_q"}
    same |= {"depth_dim": "depformer_dim", "depth_layers": "depformer_num_layers"}
    same |= {name: name for name in ("dim", "context", "text_card", "card")}
    gate = 2 * int(config["hidden_scale"] * config["dim"]) // 3
    return msgspec.structs.replace(
        MINI, name=Path(checkpoint).name, hidden=gate, **{ours: config[theirs] for ours, theirs in same.items()}
    )


def _modelled_ms(given: argparse.Namespace, device: torch.device, *, int8: bool) -> float | None:
    """What `kernels.roofline` says of this card; None for a card that it does not know."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    card: Card | None = next((each for each in CARDS if each.name in name), None)
    if card is None:
        return None
    return 1000 * tick_s(sizes(given.checkpoint), card, [given.age] * given.rows, int8=int8)


def _checkpoint(source: str, device: torch.device) -> Checkpoint:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if source != RANDOM:
        return load_checkpoint(source, device=device, dtype=dtype)
    lm = loaders.get_moshi_lm(None, None, device=device, dtype=dtype).eval()
    mimi = loaders.get_mimi(None, None, device=device).eval()
    _fill_codebooks(mimi)
    return Checkpoint(
        name=RANDOM, lm_path=Path(RANDOM), lm=lm, mimi=mimi, text_tokenizer=None, sampling=SamplingParams()
    )


def _fill_codebooks(mimi: nn.Module) -> None:
    """Untrained codebooks are all zeros and wait to be set by what they hear first: give them numbers."""
    with torch.no_grad():
        for name, buffer in mimi.named_buffers():
            if name.endswith("embedding_sum"):
                buffer.normal_()
            elif name.endswith("_initialized"):
                buffer.fill_(1.0)


def _quantile(values: Sequence[float], share: float) -> float:
    return (
        statistics.quantiles(values, n=1000, method="inclusive")[round(1000 * share) - 1] if values[1:] else values[0]
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


PARTS: Final[Mapping[str, Callable[[argparse.Namespace, torch.device], Iterator[Row | Device]]]] = MappingProxyType(
    {"device": _device, "check": _check, "kernels": _kernels, "ticks": _ticks, "swaps": _swaps}
)
"""By name; `ticks` and `swaps` are of one width, `--rows`."""


if __name__ == "__main__":
    sys.exit(main())
