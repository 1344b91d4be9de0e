"""A recorded call again: the caller says the same, and the model speaks anew, with any adapter.

The caller's tokens are fixed: they come from the journal instead of the codec. With the same weights, adapter, seed
and parameters, and keys and values kept in the same type, the model's tokens are the same to the last one. Runs on the
compiled step of a CPU, and knows no SQL.

Legend: T frames, K tokens of a column, U user codebooks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from kernels.cpu import Program, RowMemory
from server.engine import SamplingParams
from server.engine.adapters import Widths, file_sha256, read_adapter
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.native import NativeStep
from server.errors import DuologueError
from server.journal import Columns
from server.journal.reader import SessionRow

__all__ = ["Replay", "ReplayError", "Takeover", "as_sound", "hear_numbers", "load", "replay", "use_adapter", "voices"]

_STEP: Final = 2.0**-10
"""A token travels in the frame's sound as its number times this: exact, and never too loud to be sound."""


class ReplayError(DuologueError):
    """A call that cannot be replayed."""


class Takeover(msgspec.Struct, frozen=True, kw_only=True):
    """Another adapter speaks from here on."""

    step: int
    """Of the call, counted from 0."""
    adapter: Path | None
    """Its folder; None for the base model."""


class Replay(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the model said this time."""

    tokens_TK: NDArray[np.int16]
    """As far as the recording fixes it: a frame or two less than were recorded."""
    first_difference: int | None
    """Frame in which the model's side first differs from the recording; None when it does not."""
    differing: int
    """Frames in which it does."""


def replay(
    checkpoint: Checkpoint,
    about: SessionRow,
    columns: Columns,
    *,
    adapter: Path | None = None,
    takeovers: Sequence[Takeover] = (),
) -> Replay:
    """Run the call again, with this adapter's folder from the beginning; None is the base model.

    Raises `ReplayError` for a recording with gaps, or of another model, and `AdapterError`.
    """
    _check(checkpoint, about, columns)
    folders = sorted({each for each in (adapter, *(other.adapter for other in takeovers)) if each is not None})
    bf16 = about.cache_dtype == "bf16"
    step = NativeStep(checkpoint, 1, max_adapters=len(folders), hear=hear_numbers, bf16_rings=bf16)
    numbers: dict[Path | None, int] = {None: 0}
    numbers |= {each: use_adapter(step, checkpoint, each, place) for place, each in enumerate(folders, 1)}
    step.open(0, msgspec.json.decode(about.sampling, type=SamplingParams), numbers[adapter], about.seed)
    changes = {other.step: numbers[other.adapter] for other in takeovers}
    first_user = 1 + about.model_codebooks
    said = []
    for frame in range(len(columns.ticks_T) + 1):
        if frame in changes:
            step.use_adapter(0, changes[frame])
        # The caller's frame of step 0 is never read, and step n reads that of column n - 1.
        user_U = columns.tokens_TK[frame - 1, first_user:] if frame else np.zeros(about.codebooks - first_user)
        out = step.step(as_sound(user_U, checkpoint.mimi.frame_size), torch.ones(1, dtype=torch.bool))
        if out.tokens_BK[0, 0] >= 0:
            said.append(out.tokens_BK[0].numpy())
    tokens = np.array(said, np.int16).reshape(-1, about.codebooks)
    differs = (tokens[:, :first_user] != columns.tokens_TK[: len(tokens), :first_user]).any(axis=1)
    where = np.flatnonzero(differs)
    return Replay(
        tokens_TK=tokens, first_difference=int(where[0]) if len(where) else None, differing=int(differs.sum())
    )


def voices(checkpoint: Checkpoint, about: SessionRow, tokens_TK: NDArray[np.int16]) -> NDArray[np.float32]:
    """Sound of both sides, float32 `[2, samples]` at the codec's rate: the caller, then the model."""
    first_user = 1 + about.model_codebooks
    sides = tokens_TK[:, first_user:], tokens_TK[:, 1:first_user]
    with torch.inference_mode():
        return np.stack([_sound(checkpoint.mimi, side) for side in sides])


def _sound(mimi: Any, tokens_TK: NDArray[np.int16]) -> NDArray[np.float32]:
    codes = torch.from_numpy(tokens_TK.astype(np.int64)).clamp(min=0).T[None]
    sound: NDArray[np.float32] = mimi.decode(codes)[0, 0].float().numpy()
    return sound


def _check(checkpoint: Checkpoint, about: SessionRow, columns: Columns) -> None:
    if not np.array_equal(columns.ticks_T, np.arange(len(columns.ticks_T))):
        raise ReplayError(
            got=f"session {about.id}, which is not recorded from its first frame on, or has gaps",
            expected="every frame from the first on",
            remedy="`journal verify` names the gaps",
        )
    lm = checkpoint.lm
    if (about.codebooks, about.model_codebooks) != (1 + lm.n_q, lm.dep_q):
        raise ReplayError(
            got=f"a call of a model with {about.codebooks} tokens a frame, {about.model_codebooks} of them its sound",
            expected=f"{1 + lm.n_q} and {lm.dep_q}",
            remedy=f"replay it with --checkpoint {about.checkpoint}",
        )


def hear_numbers(program: Program, memory: RowMemory, mimi: Any, codebooks: int) -> None:
    """Hear each token as the number that one sample holds: the nearest of all numbers is itself."""
    ear = memory.scratch(mimi.frame_size)
    program.hear(ear, mimi.frame_size)
    numbers = torch.arange(mimi.cardinality, dtype=torch.float32)[:, None] * _STEP
    for index in range(codebooks):
        program.quantise(ear + index, numbers, index)


def as_sound(user_U: NDArray[Any], frame_size: int) -> torch.Tensor:
    """One frame that `hear_numbers` hears as these tokens, float32 `[1, frame_size]`."""
    sound = torch.zeros(1, frame_size)
    sound[0, : len(user_U)] = torch.from_numpy(user_U.astype(np.float32)) * _STEP
    return sound


def use_adapter(step: NativeStep, checkpoint: Checkpoint, folder: Path, place: int = 1) -> int:
    """Read an adapter into a place of the step's. Returns the place. Raises `AdapterError`."""
    memory = step.adapters
    layers = {name: Widths(*memory.widths(name)) for name in memory.sites}
    base = file_sha256(checkpoint.lm_path)
    file = read_adapter(folder, layers, base_sha256=base, max_rank=memory.rank)
    memory.write(place, file.parts, file.scaling)
    return place


def load(source: str) -> Checkpoint:
    """Load a checkpoint for replaying. Raises `CheckpointError`."""
    return load_checkpoint(source, device=torch.device("cpu"), dtype=torch.float32)
