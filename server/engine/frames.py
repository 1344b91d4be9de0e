"""What one frame's work gives, however it is done, and what does it.

Legend: B rows, S samples of a frame, K all codebooks.
"""

from typing import NamedTuple, Protocol

import msgspec
from torch import Tensor

from kernels.cpu import AdapterMemory
from server.engine.params import SamplingParams

__all__ = ["LOUDEST", "FrameStep", "StageSeconds", "Stepped"]


LOUDEST = 16.0
"""Samples are meant to lie within -1 and 1; beyond this the sender is broken, not loud."""


class StageSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Where one step's time went, in seconds, for all rows together. On a GPU: until the work was queued."""

    encode: float
    temporal: float
    """The text token's choice is in it."""
    depth: float
    decode: float


class Stepped(NamedTuple):
    """One frame of every row that moved, on the CPU; -2, NaN and zeros where nothing is out.

    `damaged_B` (bool) says whose sound was none (NaN, infinite, or beyond `LOUDEST`) and was heard as silence.
    """

    tokens_BK: Tensor
    logprob_B: Tensor
    pcm_BS: Tensor
    damaged_B: Tensor
    stages: StageSeconds


class FrameStep(Protocol):
    """The model's work on one frame of many rows. Rows are numbered from 0 and do not know of each other."""

    @property
    def adapters(self) -> AdapterMemory | None:
        """Where adapters are kept; None where rows cannot have any."""

    def use_adapter(self, row: int, adapter: int) -> None:
        """From its next step on, let a row speak with an adapter of `adapters`, or with 0, the model as loaded."""

    def open(self, row: int, params: SamplingParams, adapter: int, seed: int) -> None:
        """Start a row from nothing. `adapter` is an index; 0 is the model as it was loaded."""

    def close(self, row: int) -> None:
        """Ask nothing more for a row until it is opened again."""

    def age(self, row: int, frames: int) -> None:
        """Let an open row cost what a call of `frames` frames costs, to measure it. What it says means nothing."""

    def step(self, pcm_BS: Tensor, moving_B: Tensor) -> Stepped:
        """One frame: float32 sound and bool, both on the CPU. Rows outside `moving_B` stay as they are.

        Only moving rows of `pcm_BS` are read.
        """
