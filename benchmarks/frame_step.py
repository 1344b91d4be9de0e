"""The engine's frame step against the `moshi` package's, side by side: same weights, sound, width and threads.

Both are greedy in float32, and both hear the same noise and tones in every row. Trials of a few frames alternate, so
that whatever else the machine does happens to both; a figure is the median of all frames of its trials. Calls are
first made as old as the row says by really stepping them, both sides, and the tokens of all those frames are compared.
The limit is the time in which this machine, by its own measured rates, can read the weights and the past once, or
do the multiply-adds: whichever takes longer. What an adapter costs is measured besides (`adapter_cost`), and what
Opus of the replies takes (`opus_step`), and what becomes of a step beside Python (`lock_wait`).
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor

from benchmarks.adapter_cost import adapter_rows
from benchmarks.lock_wait import lock_rows
from benchmarks.opus_step import opus_rows
from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.roofline import Machine, limit_ms, measure_machine
from benchmarks.servers import checkpoint_folder
from benchmarks.short_rings import short_ring_rows
from benchmarks.stock_model import Size, StockModel
from server.engine import Engine, SamplingParams

__all__ = ["Duel", "main", "sound"]

_YOUNG: Final = 50
_GOAL: Final = 4.0
_GOAL_OLD: Final = 2.0
_GREEDY: Final = SamplingParams(use_sampling=False)
_STAGES: Final = ("encode", "language", "decode")


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each measured frame: whole, and by stage."""

    whole: list[float]
    stages: dict[str, list[float]]

    def median_ms(self, stage: str | None = None) -> float:
        """Give the median of a stage, or of the whole frame."""
        return 1000 * statistics.median(self.stages[stage] if stage else self.whole)

    def best_ms(self) -> float:
        """Give the quickest whole frame: what a busy machine leaves of the truth."""
        return 1000 * min(self.whole)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("frame_step", __doc__)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32], metavar="N", help="widths")
    options.add_argument("--full-context-rows", type=int, nargs="*", default=[1, 32], metavar="N", help="and old calls")
    options.add_argument("--trials", type=int, default=5, metavar="N", help="each side, interleaved (%(default)s)")
    options.add_argument("--frames", type=int, default=10, metavar="N", help="in a trial (%(default)s)")
    options.add_argument("--adapter-rows", type=int, nargs="*", default=[1, 32], metavar="N", help="with an adapter")
    options.add_argument("--adapter-steps", type=int, default=500, metavar="N", help="with and without (%(default)s)")
    options.add_argument("--short-ring-rows", type=int, nargs="*", default=[32], metavar="N", help="keys in bfloat16")
    options.add_argument("--opus-rows", type=int, nargs="*", default=[50], metavar="N", help="replies to make Opus of")
    options.add_argument("--opus-steps", type=int, default=40, metavar="N", help="each side, in turns (%(default)s)")
    options.add_argument("--threads", type=int, default=1, metavar="N", help="of both sides (%(default)s)")
    given = options.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # for what counts its threads when the engine is loaded
    torch.set_num_threads(given.threads)
    size = StockModel(given.checkpoint, 1).size(sound(given.checkpoint, 1, seed=0)[0])
    machine = measure_machine(size)
    note(
        f"this machine: {machine.bytes_per_s / 1e9:.1f} GB/s, {machine.multiply_adds_per_s / 1e9:.1f} G multiply-adds/s"
    )
    rows: list[Row] = []
    for width in sorted({*given.rows, *given.full_context_rows}):
        duel = Duel(given.checkpoint, width)
        if width in given.rows:
            duel.grow(_YOUNG)
            rows += _measured(duel, given.trials, given.frames, "", _GOAL, size, machine)
        if width in given.full_context_rows:
            duel.grow(duel.context)
            rows += _measured(duel, given.trials, given.frames, "_full_context", _GOAL_OLD, size, machine)
        rows.append(duel.agreement())
    rows += adapter_rows(given.checkpoint, given.adapter_rows, given.adapter_steps)
    rows += short_ring_rows(given.checkpoint, given.short_ring_rows, given.trials)
    for width in given.opus_rows:
        rows += opus_rows(given.checkpoint, width, given.opus_steps)
        rows += lock_rows(given.checkpoint, width, given.opus_steps)
    publish("frame_step", rows, as_json=given.json)


class Duel:
    """Both sides at one width, always at the same frame of the same calls."""

    def __init__(self, checkpoint: str, width: int) -> None:
        self.width = width
        self.age = 0
        self._engine = Engine.load(checkpoint_folder(checkpoint), slots=width, device="cpu")
        self._stock = StockModel(checkpoint, width)
        self._everyone = torch.ones(width, dtype=torch.bool)
        self._heard = (_frames(self._engine.frame_size, width, 0), _frames(self._engine.frame_size, width, 0))
        self._tokens: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.context = self._engine.context_frames
        self._engine.warm_up()
        for slot in range(width):
            self._engine.open(slot, _GREEDY, seed=slot)

    def grow(self, age: int) -> None:
        """Step both sides, unmeasured, until the calls are `age` frames old."""
        while self.age < age:
            self.run_ours(1)
            self.run_stock(1)
            self.age += 1

    def compare(self, trials: int, frames: int) -> tuple[Trial, Trial]:
        """Measure both sides, taking turns. Returns ours and the stock's."""
        ours, stock = (Trial(whole=[], stages={stage: [] for stage in _STAGES}) for _ in range(2))
        for trial in range(trials):
            turns = ((self.run_ours, ours), (self.run_stock, stock))
            for run, into in turns if trial % 2 else turns[::-1]:
                run(frames, into)
            self.age += frames
        return ours, stock

    def run_ours(self, frames: int, into: Trial | None = None) -> None:
        """Step the engine."""
        for _ in range(frames):
            pcm = next(self._heard[0])
            began = time.perf_counter()
            out = self._engine.step(pcm, self._everyone)
            whole = time.perf_counter() - began
            self._tokens[0].append(out.tokens[:, : 1 + self._engine.model_codebooks])
            language = out.stages.temporal + out.stages.depth
            _note(into, whole, {"encode": out.stages.encode, "language": language, "decode": out.stages.decode})

    def run_stock(self, frames: int, into: Trial | None = None) -> None:
        """Step the `moshi` package's model."""
        for _ in range(frames):
            pcm = next(self._heard[1])
            began = time.perf_counter()
            out = self._stock.step(pcm)
            whole = time.perf_counter() - began
            nothing = torch.full((self.width, 1 + self._engine.model_codebooks), -2)
            self._tokens[1].append(nothing if out.tokens is None else out.tokens)
            _note(into, whole, out.stages)

    def agreement(self) -> Row:
        """Compare all frames so far. A row that once differs says something else from then on, so rows count."""
        ours, stock = (torch.stack(tokens) for tokens in self._tokens)  # [T, B, K]
        same_B = (ours == stock).all(dim=2).all(dim=0)
        different_T = (ours != stock).any(dim=2).any(dim=1).nonzero()
        first = f"first difference in frame {int(different_T[0])}" if len(different_T) else f"in all {len(ours)} frames"
        share = float(same_B.double().mean())
        return compare(f"rows_with_equal_tokens_{self.width}", share, "share", better="higher", goal=1.0, remark=first)


def sound(checkpoint: str, width: int, *, seed: int) -> list[Tensor]:
    """Give one frame for every row, float32 `[1][width, frame_size]`, at the codec's rate."""
    engine = Engine.load(checkpoint_folder(checkpoint), slots=1, device="cpu")
    return [next(_frames(engine.frame_size, width, seed))]


def _frames(frame_size: int, width: int, seed: int) -> Iterator[Tensor]:
    """Bursts of noisy tones with pauses, another one in every row, for ever: float32 `[width, frame_size]`."""
    generator = torch.Generator().manual_seed(seed)
    time_S = torch.arange(frame_size)
    while True:
        pitch_B1 = 0.02 + 0.2 * torch.rand(width, 1, generator=generator)
        loud_B1 = (1.4 * torch.rand(width, 1, generator=generator) - 0.4).clamp(min=0)
        noise_BS = 0.1 * torch.randn(width, frame_size, generator=generator)
        yield ((0.3 * torch.sin(time_S * pitch_B1) + noise_BS) * loud_B1).clamp(-1, 1)


def _note(into: Trial | None, whole: float, stages: dict[str, float]) -> None:
    if into is not None:
        into.whole.append(whole)
        for stage, seconds in stages.items():
            into.stages[stage].append(seconds)


def _measured(
    duel: Duel, trials: int, frames: int, suffix: str, goal: float, size: Size, machine: Machine
) -> Iterator[Row]:
    age = duel.age
    ours, stock = duel.compare(trials, frames)
    name = f"frame_ms_rows_{duel.width}{suffix}"
    reading_ms, computing_ms = limit_ms(size, machine, rows=duel.width, age=min(age, duel.context))
    note(f"{duel.width} rows, {age} frames old: ours {ours.median_ms():.2f} ms, moshi {stock.median_ms():.2f} ms")
    wanted = goal if duel.width in (1, 32) else None
    yield compare(
        name,
        ours.median_ms(),
        "ms",
        better="lower",
        peer="moshi",
        peer_value=stock.median_ms(),
        goal=wanted,
        goal_for="ratio",
        remark=f"calls {age} frames old; at best {ours.best_ms():.2f} against {stock.best_ms():.2f}",
    )
    for stage in _STAGES:
        yield compare(
            f"{name}_{stage}",
            ours.median_ms(stage),
            "ms",
            better="lower",
            peer="moshi",
            peer_value=stock.median_ms(stage),
        )
    yield compare(
        f"{name}_limit",
        max(reading_ms, computing_ms),
        "ms",
        better="lower",
        remark=f"reading {reading_ms:.2f} ms, computing {computing_ms:.2f} ms; ours takes "
        f"{ours.median_ms() / max(reading_ms, computing_ms):.1f} times the limit",
    )


if __name__ == "__main__":
    main()
