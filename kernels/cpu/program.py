"""Write a step as the list of operations that `source/frame.c` runs, and lay out the memory of a row.

One `RowMemory` serves all programs of a model. Offsets are in floats from the start of a row's block. What a row
remembers from frame to frame is *state* and is zeroed when a conversation begins; rings need no zeroing, because
only what was written is read; everything else is scratch. This file knows operations, not models.

Legend: T positions in one step, I width in, O width out, H heads, D width of a head.
"""

import ctypes
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.cpu.build import BuildError, Library

__all__ = [
    "HIGHEST_RANK",
    "LARGEST_CONTEXT",
    "LORA",
    "MODEL",
    "SAMPLING",
    "Counter",
    "Program",
    "RowMemory",
    "Site",
    "Sites",
    "Tokens",
    "UnsupportedModelError",
    "check_layout",
    "in_panels",
]

LANES: Final = 16
LARGEST_CONTEXT: Final = 8192
HIGHEST_RANK: Final = 128
"""Of an adapter."""
_FAR_AWAY: Final = 1e18
"""A centroid that is nobody's nearest: its squared distance still is a float."""


class UnsupportedModelError(ValueError):
    """The model has something these programs cannot express; the message names it."""


class Code(IntEnum):
    """As in program.h."""

    MATMUL = 0
    ELU = 1
    GELU = 2
    GATE = 3
    RMS_NORM = 4
    LAYER_NORM = 5
    ROPE = 6
    ATTEND = 7
    SHIFT = 8
    REPLICATE = 9
    EMBED = 10
    COLUMN = 11
    QUANTISE = 12
    PICK = 13
    HEAR = 14
    SAY = 15


class Counter(IntEnum):
    """Frames that a row has stepped, heard and spoken."""

    STEPS = 0
    HEARD = 1
    SPOKEN = 2


class Tokens(IntEnum):
    """A row's lists of tokens."""

    SAID = 0
    HEARD = 1
    READ = 2
    COMPLETE = 3


OP: Final = np.dtype(
    [
        (name, np.int32)
        for name in (
            "code",
            "times",
            "in",
            "out",
            "bf16",
            "add",
            "index",
            "capacity",
            "position",
            "which",
            "site",
            "unused",
        )
    ]
    + [(name, np.int64) for name in ("x", "y", "ring", "table", "x_stride", "y_stride", "w", "w2")]
    + [("scale", np.float64)],
    align=True,
)
SAMPLING: Final = np.dtype(
    [
        ("seed", np.uint64),
        ("temperature", np.float32, 2),
        ("pad_mult", np.float32),
        ("penalty", np.float32),
        ("top_k", np.int32, 2),
        ("greedy", np.int32, 2),
        ("window", np.int32),
        ("remembered", np.int32),
        ("recent", np.int32, 256),
    ],
    align=True,
)
MODEL: Final = np.dtype(
    [
        (name, np.int32)
        for name in (
            "frame_size", "codebooks", "dep_q", "user_codebooks", "max_delay", "ring",
            "text_start", "audio_start", "pad_id", "end_pad_id", "group",
        )
    ]
    + [("row_floats", np.int64), ("ops", np.int32, 4), ("program", np.int64, 4)]
    + [
        (name, np.int64)
        for name in (
            "delays", "memory", "counters", "token_ring", "logprob_ring", "tokens", "how", "dictated", "adapter",
            "loras", "sites",
        )
    ],
    align=True,
)  # fmt: skip
LORA: Final = np.dtype([("a", np.int64), ("b", np.int64), ("rank", np.int64)], align=True)


def check_layout(library: Library) -> None:
    """Raise `BuildError` where Python and C disagree about a structure."""
    found = (ctypes.c_int64 * 7)()
    library.frame_layout(found)
    sizes = [OP.itemsize, SAMPLING.itemsize, MODEL.itemsize]
    wanted = [*sizes, max(Code), len(Counter), LORA.itemsize, HIGHEST_RANK]
    if list(found) != wanted:
        raise BuildError(f"program.h and program.py disagree: {list(found)} against {wanted}")


class RowMemory:
    """The plan of one row's block of floats."""

    def __init__(self) -> None:
        self.floats = 0
        self.states: list[slice] = []

    def scratch(self, floats: int) -> int:
        """Room for one step. Returns its offset."""
        offset = self.floats
        self.floats += -(-floats // LANES) * LANES
        return offset

    def state(self, floats: int) -> int:
        """Room that is kept from step to step and is zero when a conversation begins."""
        offset = self.scratch(floats)
        self.states.append(slice(offset, offset + floats))
        return offset

    def ring(self, heads: int, width: int, capacity: int, *, bf16: bool = False) -> int:
        """Room for the keys and values of one attention, in float32 or in half of that."""
        blocks = -(-capacity // LANES)
        numbers = heads * width * (blocks * LANES + capacity)
        return self.scratch(-(-numbers // 2) if bf16 else numbers)


class Site(NamedTuple):
    """A product that adapters may change."""

    name: str
    width_in: int
    width_out: int
    scale_O: Tensor | None
    """What the product's weight was multiplied with, output by output."""


class Sites:
    """All products that adapters may change, by their module's name in the model."""

    def __init__(self) -> None:
        self.all: list[Site] = []

    def place(self, site: Site) -> int:
        """Give the number of a site; a module that is used twice is one site."""
        for number, known in enumerate(self.all):
            if known.name == site.name:
                return number
        self.all.append(site)
        return len(self.all) - 1


class Program:
    """A list of operations. Weights are copied into the layout that C reads, and kept alive here."""

    def __init__(self, sites: Sites | None = None) -> None:
        self.sites = sites or Sites()
        self.ops: list[dict[str, Any]] = []
        self.multiply_adds = 0
        self.weight_bytes = 0
        self._kept: list[Any] = []

    def matmul(
        self,
        x: int,
        y: int,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        *,
        times: int = 1,
        x_stride: int = 0,
        y_stride: int = 0,
        add: bool = False,
        name: str | None = None,
        scale_O: Tensor | None = None,
    ) -> None:
        """`y[t] = weight x[t] (+ bias) (+ y[t])`. With `x_stride` below I the windows overlap: a convolution.

        A product with a `name` may be changed by adapters, for which it has one position. Its weight is first
        multiplied with `scale_O`, if there is one.
        """
        width_out, width_in = weight_OI.shape
        site = -1 if name is None else self.sites.place(Site(name, width_in, width_out, scale_O))
        address, bf16 = self._panels(weight_OI if scale_O is None else weight_OI * scale_O[:, None])
        self.multiply_adds += width_out * width_in * times
        bias = 0 if bias_O is None else self._floats(bias_O)
        self._op(
            Code.MATMUL, x=x, y=y, times=times, width_in=width_in, width_out=width_out, w=address, w2=bias,
            bf16=bf16, add=add, x_stride=x_stride, y_stride=y_stride, site=site,
        )  # fmt: skip

    def elu(self, x: int, y: int, floats: int) -> None:
        """`y = elu(x)`; `x` and `y` may be the same place."""
        self._op(Code.ELU, x=x, y=y, width_in=floats)

    def gelu(self, x: int, y: int, floats: int) -> None:
        """`y = gelu(x)`, with the error function and not its approximation by a hyperbolic tangent."""
        self._op(Code.GELU, x=x, y=y, width_in=floats)

    def gate(self, x: int, y: int, width: int, *, times: int = 1) -> None:
        """`y[t] = silu(a) * b` where `x[t]` is a and b, each of `width`."""
        self._op(Code.GATE, x=x, y=y, width_out=width, times=times, x_stride=2 * width, y_stride=width)

    def rms_norm(self, x: int, y: int, alpha: Tensor, epsilon: float, *, times: int = 1) -> None:
        """`y[t] = alpha * x[t] / sqrt(epsilon + mean of squares)`."""
        width = alpha.numel()
        self._op(
            Code.RMS_NORM, x=x, y=y, width_in=width, times=times, x_stride=width, y_stride=width,
            w=self._floats(alpha), scale=epsilon,
        )  # fmt: skip

    def layer_norm(self, x: int, y: int, weight: Tensor, bias: Tensor, epsilon: float, *, times: int = 1) -> None:
        """`y[t]` = `x[t]` with mean 0 and variance 1, then times `weight` plus `bias`."""
        width = weight.numel()
        self._op(
            Code.LAYER_NORM, x=x, y=y, width_in=width, times=times, x_stride=width, y_stride=width,
            w=self._floats(weight), w2=self._floats(bias), scale=epsilon,
        )  # fmt: skip

    def rope(self, y: int, frequencies: Tensor, counter: Counter, *, times: int = 1) -> None:
        """Cosines and sines of the next positions, `[T, 2, D / 2]`: once a step for all layers."""
        half = frequencies.numel()
        self._op(Code.ROPE, y=y, width_in=half, times=times, index=counter, w=self._floats(frequencies))

    def attend(
        self,
        qkv: int,
        y: int,
        ring: int,
        *,
        heads: int,
        width: int,
        capacity: int,
        at: Counter | int,
        table: int = -1,
        times: int = 1,
        bf16: bool = False,
    ) -> None:
        """Attention of `qkv` `[T, 3, H, D]` over the ring and itself, into `y` `[T, H, D]`.

        `at` counts the row's positions, or is the one position of a plain number. `bf16` says what the ring keeps.
        """
        if capacity > LARGEST_CONTEXT:
            raise UnsupportedModelError(f"a context of {capacity}, more than {LARGEST_CONTEXT}")
        counted = isinstance(at, Counter)
        self._op(
            Code.ATTEND, x=qkv, y=y, ring=ring, table=table, width_in=width, width_out=heads, times=times,
            capacity=capacity, index=at if counted else -1, position=0 if counted else at, bf16=bf16,
        )  # fmt: skip

    def shift(self, x: int, history: int, stride: int) -> None:
        """Keep the last `history` floats of `history + stride` as the next frame's history."""
        if history:
            self._op(Code.SHIFT, x=x, width_in=history, x_stride=stride)

    def replicate(self, x: int, width: int, history: int, counter: Counter) -> None:
        """Before the first frame, fill `history` positions of `width` with the first one after them."""
        self._op(Code.REPLICATE, x=x, width_in=width, times=history, index=counter)

    def embed(self, y: int, table_VI: Tensor, tokens: Tokens, index: int, *, add: bool) -> None:
        """The embedding of one of the row's tokens, put at `y` or added."""
        address, bf16 = self._stored(table_VI)
        self._op(Code.EMBED, y=y, width_in=table_VI.shape[1], w=address, bf16=bf16, add=add, which=tokens, index=index)

    def column(self, y: int, tables: list[Tensor]) -> None:
        """The sum of the embeddings of the column that the model reads; text comes first."""
        stored = [self._stored(table) for table in tables]
        if len({bf16 for _, bf16 in stored}) > 1:
            stored = [(self._floats(table), False) for table in tables]
        addresses = np.array([address for address, _ in stored], np.int64)
        self._kept.append(addresses)
        self._op(Code.COLUMN, y=y, width_in=tables[0].shape[1], w=addresses.ctypes.data, bf16=stored[0][1])

    def quantise(self, x: int, centroids_VI: Tensor, index: int) -> None:
        """Token `index` of what was heard: the centroid nearest to `x`, which is then taken from `x`."""
        bins, width = centroids_VI.shape
        panels = in_panels(centroids_VI.float(), fill=_FAR_AWAY)
        self._kept.append(panels)
        self.multiply_adds += bins * width
        self._op(
            Code.QUANTISE, x=x, width_in=width, width_out=bins, w=panels.data_ptr(),
            w2=self._floats(centroids_VI), index=index,
        )  # fmt: skip

    def pick(self, logits: int, scratch: int, card: int, index: int) -> None:
        """Token `index` of what is said, from logits. `scratch` has room for `2 * card + 64` floats."""
        self._op(Code.PICK, x=logits, y=scratch, width_in=card, index=index)

    def hear(self, y: int, floats: int) -> None:
        """The caller's sound of this frame."""
        self._op(Code.HEAR, y=y, width_in=floats)

    def say(self, x: int, floats: int) -> None:
        """The model's sound of this frame."""
        self._op(Code.SAY, x=x, width_in=floats)

    def finish(self) -> NDArray[Any]:
        """The operations as C reads them. They live as long as this program and this array."""
        array = np.zeros(len(self.ops), OP)
        for place, operation in enumerate(self.ops):
            for name, value in operation.items():
                array[name][place] = value
        return array

    def _op(self, code: Code, *, width_in: int = 0, width_out: int = 0, times: int = 1, **fields: int | float) -> None:
        self.ops.append({"code": code, "in": width_in, "out": width_out, "times": times} | fields)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        self.weight_bytes += tensor.numel() * tensor.element_size()
        return tensor.data_ptr()

    def _floats(self, tensor: Tensor) -> int:
        return self._keep(tensor.detach().float().flatten().contiguous().clone())

    def _stored(self, tensor: Tensor) -> tuple[int, bool]:
        """As bfloat16 where that loses nothing: half the bytes to read."""
        exact = tensor.detach().float().contiguous()
        short = exact.bfloat16()
        if torch.equal(short.float(), exact):
            return self._keep(short), True
        return self._keep(exact.clone()), False

    def _panels(self, weight_OI: Tensor) -> tuple[int, bool]:
        return self._stored(in_panels(weight_OI.detach().float()))


def in_panels(weight_OI: Tensor, fill: float = 0.0) -> Tensor:
    """The layout of a product's weights: `[O, I]` -> `[ceil(O / 16), I, 16]`, filled up."""
    width_out, width_in = weight_OI.shape
    panels = -(-width_out // LANES)
    padded = torch.full((panels * LANES, width_in), fill)
    padded[:width_out] = weight_OI
    return padded.view(panels, LANES, width_in).transpose(1, 2).contiguous()
