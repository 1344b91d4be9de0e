"""What a tick must cost on a GPU: a model, not a measurement. Every figure that comes from here is labelled "modelled".

    python -m kernels.roofline              tables
    python -m kernels.roofline --json       the same as one JSON object
    python -m kernels.roofline --write DIR  DIR/roofline.md and DIR/roofline.svg

Each part of a tick moves bytes and does operations. Its time is the longer of the two at `ATTAINED` of the card's peak
(Williams et al., *Roofline*, 2009), plus `LAUNCH_S` for every kernel of a CUDA graph; parts follow one another. What
is not in it: the codec's convolutions beyond their bytes, the host, and whatever a GPU does worse than its data sheet
says.
Stock is the `moshi` package's attention, which reads every slot of every ring whatever the call's age; its masks and
copies are not counted, so the comparison favours it.

Legend: B rows, P splits. Bytes are of one tick, ages are in frames of 80 ms.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from kernels.ring_decode import LEAST, SPLITS, TILE, TILE_INT8

__all__ = [
    "CARDS",
    "MINI",
    "MOSHI_7B",
    "Card",
    "Model",
    "Part",
    "codec_ring_bytes",
    "fits",
    "main",
    "parts",
    "ring_bytes",
    "tick_s",
]

ATTAINED: Final = 0.7
"""Share of the peak that is planned with; well-written kernels reach it."""
LAUNCH_S: Final = 2e-6
"""Between two kernels of one CUDA graph."""
FRAME_S: Final = 0.08
FRAMES_PER_S: Final = 12.5
RESERVED: Final = 0.08
"""Share of a card's memory for the driver, the graph's temporaries and fragmentation."""
CODEC_POSITIONS: Final = 2
"""Of each of the codec's transformers in one frame."""
CODEC_BYTES: Final = 4
_PARTIAL: Final = 4
_AGES: Final = (("45 s", 562), ("4 min", 3000))


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model decides its cost. Widths are in numbers, `bytes` is of one weight or stored number."""

    name: str
    dim: int
    heads: int
    layers: int
    hidden: int
    context: int
    text_card: int
    audio_codebooks: int
    depth_dim: int
    depth_layers: int
    depth_hidden: int
    depth_steps: int
    card: int
    bytes: int
    codec_weight_bytes: int
    codec_dim: int
    codec_layers: int
    """Of each of its two transformers."""
    codec_context: int
    """Positions that they see; a frame brings `CODEC_POSITIONS`. Their rings are float32."""

    @property
    def codec_row_bytes(self) -> int:
        """A row's rings in the codec."""
        return 2 * self.codec_layers * 2 * self.codec_context * self.codec_dim * CODEC_BYTES


MOSHI_7B: Final = Model(
    name="Moshi 7B", dim=4096, heads=32, layers=32, hidden=11264, context=3000, text_card=32000, audio_codebooks=16,
    depth_dim=1024, depth_layers=6, depth_hidden=2816, depth_steps=8, card=2048, bytes=2,
    codec_weight_bytes=4 * 79_300_000, codec_dim=512, codec_layers=8, codec_context=250,
)  # fmt: skip
MINI: Final = Model(
    name="mini", dim=256, heads=8, layers=6, hidden=672, context=750, text_card=640, audio_codebooks=12,
    depth_dim=128, depth_layers=2, depth_hidden=256, depth_steps=6, card=512, bytes=2,
    codec_weight_bytes=4 * 1_700_000, codec_dim=128, codec_layers=2, codec_context=50,
)  # fmt: skip


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU's data sheet: bytes a second, dense 16-bit operations a second, bytes of memory."""

    name: str
    bandwidth: float
    operations: float
    memory: float


CARDS: Final = (
    Card(name="A100", bandwidth=2.039e12, operations=312e12, memory=80e9),
    Card(name="H100", bandwidth=3.35e12, operations=989e12, memory=80e9),
    Card(name="H200", bandwidth=4.8e12, operations=989e12, memory=141e9),
    Card(name="B200", bandwidth=8.0e12, operations=2250e12, memory=180e9),
)
"""SXM forms with 80, 80, 141 and 180 GB."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a tick."""

    name: str
    bytes: float
    operations: float
    kernels: int


class RingBytes(msgspec.Struct, frozen=True, kw_only=True):
    """What one row's attention of one layer moves, and what it could not do without."""

    moved: int
    needed: int
    stock: int


def ring_bytes(model: Model, age: int, *, int8: bool = False) -> RingBytes:
    """Of a call `age` frames old: `ring_decode` and `combine`, the least, and the stock implementation."""
    width = model.dim // model.heads
    slot = 2 * (width + 4 if int8 else width * model.bytes)
    old = min(age, model.context - 1)
    given = 4 * width * model.bytes  # query, new key, new value, output
    needed = model.heads * ((old + 1) * slot + given)
    tile = TILE_INT8 if int8 else TILE
    filled = min(age, model.context)
    span = -(-max(-(-filled // SPLITS), LEAST) // tile) * tile
    busy = max(1, -(-filled // span))
    angles = 2 * (width // 2) * 4
    partials = 2 * busy * width * _PARTIAL + 2 * SPLITS * _PARTIAL
    stock = model.heads * ((model.context + 1) * 2 * width * model.bytes + given)
    return RingBytes(moved=needed + model.heads * (partials + angles), needed=needed, stock=stock)


def codec_ring_bytes(model: Model, age: int) -> RingBytes:
    """The same of one row in one layer of one of the codec's transformers, two positions a step."""
    number = model.codec_dim * CODEC_BYTES
    slots, new = model.codec_context, CODEC_POSITIONS
    filled = min(new * age, slots)
    given = 4 * new * number
    needed = 2 * (min(filled, slots - new) + new) * number + given
    span = -(-max(-(-filled // SPLITS), LEAST) // TILE) * TILE
    partials = 2 * max(1, -(-filled // span)) * new * model.codec_dim * _PARTIAL
    return RingBytes(moved=needed + partials, needed=needed, stock=2 * (slots + new) * number + given)


def _weights(model: Model) -> dict[str, int]:
    """Numbers that every tick reads once, whoever talks."""
    temporal = model.layers * (4 * model.dim**2 + 3 * model.dim * model.hidden)
    inner = model.depth_layers * (4 * model.depth_dim**2 + 3 * model.depth_dim * model.depth_hidden)
    depth = model.depth_steps * (inner + model.dim * model.depth_dim + model.depth_dim * model.card)
    return {"temporal weights": temporal, "text head": model.dim * model.text_card, "depth weights": depth}


def parts(model: Model, ages: Sequence[int], *, int8: bool = False, stock: bool = False) -> list[Part]:
    """A tick of `len(ages)` rows, part by part."""
    rows = len(ages)
    launches = {"temporal weights": 4 * model.layers, "text head": 1, "depth weights": 0}
    launches["depth weights"] = model.depth_steps * (4 * model.depth_layers + 2)
    made = [
        Part(name=name, bytes=count * model.bytes, operations=2 * count * rows, kernels=launches[name])
        for name, count in _weights(model).items()
    ]
    rings = [ring_bytes(model, age, int8=int8) for age in ages]
    seen = [model.context if stock else min(age + 1, model.context) for age in ages]
    made.append(
        Part(
            name="ring attention",
            bytes=model.layers * sum(ring.stock if stock else ring.moved for ring in rings),
            operations=model.layers * sum(4 * slots * model.dim for slots in seen),
            kernels=2 * model.layers,
        )
    )
    between = model.layers * (14 * model.dim + 6 * model.hidden)
    between += model.depth_steps * model.depth_layers * (14 * model.depth_dim + 6 * model.depth_hidden)
    vocabulary = 4 * (4 * model.text_card + 3 * model.depth_steps * model.card)
    table = (1 + model.audio_codebooks) * model.dim * model.bytes
    small = 3 * model.layers + model.depth_steps * (4 * model.depth_layers + 4) + 20
    made.append(
        Part(
            name="norms, gates, sampling",
            bytes=rows * (between * model.bytes + vocabulary + table),
            operations=rows * 10 * between,
            kernels=small,
        )
    )
    layers = 2 * model.codec_layers
    codec = [codec_ring_bytes(model, age) for age in ages]
    made.append(
        Part(
            name="codec rings",
            bytes=layers * sum(ring.stock if stock else ring.moved for ring in codec),
            operations=layers * rows * CODEC_POSITIONS * 4 * model.codec_context * model.codec_dim,
            kernels=2 * layers,
        )
    )
    made.append(Part(name="codec weights (bytes only)", bytes=model.codec_weight_bytes, operations=0, kernels=0))
    return made


def part_s(part: Part, card: Card) -> float:
    """Modelled seconds of one part."""
    moving, computing = part.bytes / card.bandwidth, part.operations / card.operations
    return max(moving, computing) / ATTAINED + part.kernels * LAUNCH_S


def tick_s(model: Model, card: Card, ages: Sequence[int], *, int8: bool = False, stock: bool = False) -> float:
    """Modelled seconds of a tick in which calls of these ages (frames) move."""
    return sum(part_s(part, card) for part in parts(model, ages, int8=int8, stock=stock))


def fits(model: Model, card: Card, *, int8: bool = False) -> int:
    """Modelled number of callers whose rings fit beside the weights."""
    width = model.dim // model.heads
    row = model.layers * model.heads * model.context * 2 * (width + 4 if int8 else width * model.bytes)
    embeddings = model.dim * (model.text_card + model.audio_codebooks * model.card)
    embeddings += model.depth_dim * (model.text_card + (model.depth_steps - 1) * model.card)
    weights = (sum(_weights(model).values()) + embeddings) * model.bytes + model.codec_weight_bytes
    return max(0, int((card.memory * (1 - RESERVED) - weights) // (row + model.codec_row_bytes)))


def in_time(model: Model, card: Card, age: int, *, int8: bool = False, stock: bool = False) -> int:
    """Modelled number of callers of this age whose tick ends within a frame; at most 4096."""
    low, high = 0, 4096
    while low < high:
        middle = (low + high + 1) // 2
        in_frame = tick_s(model, card, [age] * middle, int8=int8, stock=stock) <= FRAME_S
        low, high = (middle, high) if in_frame else (low, middle - 1)
    return low


def uniform(rows: int, model: Model) -> list[int]:
    """Ages of calls that have anything from nothing to a full context behind them, evenly spread."""
    return [(2 * row + 1) * model.context // (2 * rows) for row in range(rows)]


def figures() -> dict[str, Any]:
    """Everything that the tables show, modelled."""
    rows = []
    for model in (MOSHI_7B, MINI):
        for card in CARDS:
            for count in (1, 16, 32, 64):
                ages = uniform(count, model)
                rows.append({
                    "model": model.name, "card": card.name, "rows": count,
                    "tick_ms": 1e3 * tick_s(model, card, ages),
                    "tick_int8_ms": 1e3 * tick_s(model, card, ages, int8=True),
                    "tick_full_ms": 1e3 * tick_s(model, card, [model.context] * count),
                    "stock_ms": 1e3 * tick_s(model, card, ages, stock=True),
                })  # fmt: skip
    held = [
        {
            "model": model.name, "card": card.name, "ring": "int8" if int8 else "bf16",
            "fit_in_memory": fits(model, card, int8=int8), "in_80_ms": in_time(model, card, model.context, int8=int8),
        }
        for model in (MOSHI_7B, MINI) for card in CARDS for int8 in (False, True)
    ]  # fmt: skip
    traffic = []
    for name, age in (("2 s", 25), ("10 s", 125), *_AGES):
        for int8 in (False, True):
            ring = ring_bytes(MOSHI_7B, age, int8=int8)
            traffic.append({
                "age": name, "ring": "int8" if int8 else "bf16", "moved_over_needed": ring.moved / ring.needed,
                "moved_over_stock": ring.moved / ring.stock,
            })  # fmt: skip
    split = [msgspec.to_builtins(part) for part in parts(MOSHI_7B, uniform(32, MOSHI_7B))]
    return {"kind": "modelled", "ticks": rows, "callers": held, "ring_traffic": traffic, "parts_32_rows": split}


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_PREFACE: Final = (
    "Written by `python -m kernels.roofline --write docs`; how, and what is left out, stands at the top of "
    "`kernels/roofline.py`. No figure on this page was measured."
)


def markdown(found: dict[str, Any]) -> str:
    """The page `roofline.md`."""
    h100 = CARDS[1]
    text = [
        "# What a tick costs on a GPU: modelled, not measured",
        _PREFACE,
        "![Modelled tick time against callers](roofline.svg)",
        "## Modelled tick time, ms, for calls of ages evenly spread from 0 to the full context",
        _table(
            ["model, card", "rows", "bf16 ring", "int8 ring", "all at full context", "stock attention"],
            [[f"{row['model']}, {row['card']}", str(row["rows"]),
              *(f"{row[key]:.1f}" for key in ("tick_ms", "tick_int8_ms", "tick_full_ms", "stock_ms"))]
             for row in found["ticks"]],
        ),
        "## Modelled callers, all at full context",
        _table(
            ["model, card, ring", "fit in memory", "tick within 80 ms"],
            [[f"{row['model']}, {row['card']}, {row['ring']}", str(row["fit_in_memory"]), str(row["in_80_ms"])]
             for row in found["callers"]],
        ),
        "`4096` is where the search ends.",
        "## Modelled traffic of one row's ring attention (Moshi 7B)",
        _table(
            ["age of the call, ring", "moved / must move", "moved / stock (bf16)"],
            [[f"{row['age']}, {row['ring']}", f"{row['moved_over_needed']:.3f}", f"{row['moved_over_stock']:.3f}"]
             for row in found["ring_traffic"]],
        ),
        "## Modelled parts of a tick: Moshi 7B, 32 rows of evenly spread ages, H100",
        _table(
            ["part", "GB", "Gop", "kernels", "ms"],
            [[part["name"], f"{part['bytes'] / 1e9:.2f}", f"{part['operations'] / 1e9:.1f}", str(part["kernels"]),
              f"{1e3 * part_s(msgspec.convert(part, Part), h100):.2f}"] for part in found["parts_32_rows"]],
        ),
    ]  # fmt: skip
    return "\n\n".join(text) + "\n"


def _draw(path: Path) -> None:
    from matplotlib import rcParams  # noqa: PLC0415 - a development extra; tables do without
    from matplotlib.figure import Figure  # noqa: PLC0415

    rcParams["svg.hashsalt"] = "roofline"
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, age, title in zip(
        axes, (_AGES[0][1], MOSHI_7B.context), ("45 s into the call", "full context"), strict=True
    ):
        for colour, card in zip(("C0", "C1", "C2", "C3"), CARDS, strict=True):
            for style, stock in (("-", False), (":", True)):
                counts = range(1, 97)
                ticks = [1e3 * tick_s(MOSHI_7B, card, [age] * count, stock=stock) for count in counts]
                axis.plot(counts, ticks, style, color=colour, label=None if stock else card.name)
        axis.axhline(1e3 * FRAME_S, color="black", linewidth=0.8)
        axis.set(title=f"Moshi 7B, {title}", xlabel="callers", ylim=(0, 100))
    axes[0].set_ylabel("tick, ms (modelled)")
    axes[0].legend(title="bf16 ring; dotted: stock", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the model's figures. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.roofline", description="modelled cost of a tick on a GPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write roofline.md and roofline.svg there")
    chosen = parser.parse_args(arguments)
    found = figures()
    if chosen.write:
        (chosen.write / "roofline.md").write_text(markdown(found), encoding="utf-8")
        _draw(chosen.write / "roofline.svg")
    print(json.dumps(found) if chosen.json else markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
