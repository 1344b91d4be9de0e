"""What an adapter costs in a step: steps with and without one take turns in one process, in one conversation.

Part of `benchmarks.frame_step`. All calls are as old as each other and hear the same; only the adapters of the rows
change from one step to the next, so whatever else the machine does happens to both kinds. Each pair of neighbouring
steps gives one difference, whose median and its interval (95 %, by order statistics, which assumes nothing of how times
are spread) are reported as shares of a step without.

Legend: B rows, S samples of a frame.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import torch

from benchmarks.report import Row, compare, note
from benchmarks.servers import checkpoint_folder
from benchmarks.swap_files import write_adapter
from server.engine import Engine, SamplingParams

__all__ = ["Pairs", "adapter_rows", "measure_pairs"]

_GOAL: Final = 10.0
"""Percent of a frame."""
_WARM: Final = 20
_RANK: Final = 16
_VERSIONS: Final = 6
"""Spoken at once, where there are so many rows."""
_GREEDY: Final = SamplingParams(use_sampling=False)


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of neighbouring steps."""

    without: list[float]
    with_adapter: list[float]

    def percent(self) -> tuple[float, float, float]:
        """The median difference and its interval, in percent of the median step without."""
        plain = statistics.median(self.without)
        shares = sorted(100 * (b - a) / plain for a, b in zip(self.without, self.with_adapter, strict=True))
        off = math.ceil(0.98 * math.sqrt(len(shares)))
        middle = len(shares) // 2
        return statistics.median(shares), shares[max(0, middle - off)], shares[min(len(shares) - 1, middle + off)]


def adapter_rows(
    checkpoint: str, widths: Sequence[int], steps: int, *, rank: int = _RANK, versions: int = _VERSIONS
) -> Iterator[Row]:
    """Measure, at each width, all rows with one adapter, and rows with `versions` different ones in turn."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / f"adapter-{number}" for number in range(versions)]
        _write(checkpoint, folders, rank)
        for width in widths:
            for spoken in sorted({1, min(width, versions)}):
                yield _row(measure_pairs(checkpoint, folders[:spoken], width, steps), width, spoken, rank)


def measure_pairs(checkpoint: str, folders: Sequence[Path], width: int, steps: int) -> Pairs:
    """Step `width` calls, `steps` times with these adapters, one row after the other, and as often without."""
    engine = Engine.load(checkpoint_folder(checkpoint), slots=width, device="cpu", max_adapters=len(folders))
    numbers = [engine.load_adapter(folder) for folder in folders]
    engine.warm_up()
    for slot in range(width):
        engine.open(slot, _GREEDY, seed=slot)
    everyone = torch.ones(width, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * (steps + _WARM)):
        adapted = (turn + turn // 2) % 2  # which of a pair comes first changes from pair to pair
        for slot in range(width):
            engine.use_adapter(slot, numbers[slot % len(numbers)] if adapted else None)
        pcm_BS = 0.1 * torch.randn(width, engine.frame_size, generator=generator)
        began = time.perf_counter()
        engine.step(pcm_BS, everyone)
        if turn >= 2 * _WARM:
            taken[adapted].append(time.perf_counter() - began)
    return Pairs(without=taken[0], with_adapter=taken[1])


def _write(checkpoint: str, folders: Sequence[Path], rank: int) -> None:
    engine = Engine.load(checkpoint_folder(checkpoint), slots=1, device="cpu")
    config = json.loads((checkpoint_folder(checkpoint) / "config.json").read_text())
    for seed, folder in enumerate(folders):
        write_adapter(folder, engine.adapter_layers, engine.base_sha256, config, rank=rank, seed=seed)


def _row(pairs: Pairs, width: int, versions: int, rank: int) -> Row:
    percent, low, high = pairs.percent()
    without, with_adapter = (1000 * statistics.median(each) for each in (pairs.without, pairs.with_adapter))
    several = "" if versions == 1 else f"_versions_{versions}"
    remark = (
        f"{low:.1f} to {high:.1f} in {len(pairs.without)} pairs of steps; {with_adapter:.3f} ms against {without:.3f}"
    )
    note(f"{width} rows, {versions} adapters of rank {rank}: {percent:.1f} % ({remark})")
    return compare(
        f"adapter_percent_rows_{width}{several}",
        percent,
        "% of a step",
        better="lower",
        goal=_GOAL if versions == 1 else None,
        remark=remark,
    )
