"""What keys and values in bfloat16 save: steps of old calls of either kind take turns, for `benchmarks.frame_step`."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.report import Row, compare, note
from benchmarks.servers import checkpoint_folder
from server.engine import Engine

__all__ = ["short_ring_rows"]

_FRAMES: Final = 5
"""In a turn."""


def short_ring_rows(checkpoint: str, widths: Sequence[int], trials: int) -> Iterator[Row]:
    """Measure, at each width, `trials` turns of both kinds."""
    for width in widths:
        engines = [
            Engine.load(checkpoint_folder(checkpoint), slots=width, device="cpu", work="native", cache_dtype=kind)
            for kind in ("bf16", "fp32")
        ]
        turns: list[list[float]] = [[], []]
        for trial in range(trials):
            for side in (0, 1) if trial % 2 else (1, 0):
                turns[side].append(1000 * engines[side].measure_step(width, _FRAMES))
        note(f"{width} rows, rings in bfloat16: {turns[0]}, in float32: {turns[1]} ms")
        short, long = map(statistics.median, turns)
        yield compare(
            f"frame_ms_rows_{width}_full_context_bf16_rings", short, "ms", better="lower", peer="float32 rings",
            peer_value=long, remark="median of turns",
        )  # fmt: skip
