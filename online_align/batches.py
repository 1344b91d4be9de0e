"""Preference pairs as the model reads them: one row per pair, the shared past only once.

A row is the past and all frames in which the sides agree, then the rest of the chosen side, then the rest of the
rejected side. Positions continue from the past in both, and neither sees the other (`Batch.visible`), so every number
is that of two separate sequences. Columns are shifted by the codebooks' delays as in `server.engine.columns`: position
n reads text and undelayed audio of frame n - 1, and what it says is the text of frame n. It knows no weights.

Legend: B pairs, S positions of a row, K tokens of a column, T frames of a side, N scored frames of the longer side,
P frames of the past.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from online_align.losses import credit_window
from online_align.records import Pair, Side
from server.errors import DuologueError

__all__ = ["Batch", "Grid", "PackedPair", "PairError", "batches", "collate", "fitting", "pack"]

log = logging.getLogger(__name__)

_NO_TOKEN = -1
_PADDING = -1


class PairError(DuologueError):
    """A pair that cannot be trained on."""


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """What of the model decides how tokens are laid out."""

    delays: tuple[int, ...]
    """Of every codebook, text first, in frames."""
    text_start: int
    audio_start: int
    model_codebooks: int
    context: int
    """Positions that the model attends to."""
    frame_rate: float

    @property
    def codebooks(self) -> int:
        """Tokens in a column."""
        return len(self.delays)


class PackedPair(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One pair as a row. Sides are numbered 0 chosen, 1 rejected."""

    pair: Pair
    tokens_SK: NDArray[np.int64]
    position_S: NDArray[np.int64]
    branch_S: NDArray[np.int64]
    """0 the past, 1 chosen, 2 rejected."""
    index: tuple[NDArray[np.int64], NDArray[np.int64]]
    """For each side `[T]`: the position that says the frame's text."""
    columns: tuple[NDArray[np.int64], NDArray[np.int64]]
    """For each side `[T, K]`: what the model's step at each frame is to say, delays included. Column 0 is the text."""
    credit: tuple[NDArray[np.float32], NDArray[np.float32]]
    """For each side `[T]`: what its frames weigh in the preference."""

    @property
    def positions(self) -> int:
        """Length of the row."""
        return len(self.position_S)


class Batch(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Rows of one length. Positions beyond a row's end see only themselves."""

    pairs: tuple[Pair, ...]
    tokens_BSK: Tensor
    """int64."""
    position_BS: Tensor
    shared: int
    """The first so many positions of every row are past, and no longer than the model attends to; or 0."""
    visible_BSS: Tensor
    """bool: whether the first position sees the second."""
    index_B2N: Tensor
    """int64: positions that say the frames of the chosen and the rejected side."""
    columns_B2NK: Tensor
    """int64: what is to be said there, delays included; -1 beyond a side's end."""
    credit_B2N: Tensor
    """float32: weights of the frames in the preference; 0 beyond a side's end."""

    @property
    def real_B2N(self) -> Tensor:
        """float32: 1 for the frames of a side, 0 beyond its end."""
        return (self.columns_B2NK[..., 0] >= 0).float()


def pack(pair: Pair, grid: Grid, *, context: int | None = None, whole: tuple[bool, bool] = (True, True)) -> PackedPair:
    """Lay a pair out as a row. `context` is how many frames of the past are read at most; None is all there are.

    A side (chosen, rejected) that is not `whole` ends with the last frame that weighs anything: nothing later can
    change its score. Raises `PairError`.
    """
    _check(pair, grid)
    credit = _credit(pair, grid)
    given = zip((pair.chosen, pair.rejected), credit, whole, strict=True)
    sides = [_cut(side, weights, all_of_it) for side, weights, all_of_it in given]
    past_PK = pair.context_PK if context is None else pair.context_PK[max(0, len(pair.context_PK) - context) :]
    first = 0 if len(past_PK) == pair.at_tick else 1 + max(grid.delays)
    inputs = [_delayed(np.concatenate([past_PK, columns[:-1]]), grid) for columns, _ in sides]
    shared = len(past_PK) + _agreement(sides[0][0], sides[1][0]) + 1
    lengths = [len(past_PK) + len(columns) for columns, _ in sides]
    starts = (shared, lengths[0])
    tokens = [inputs[0][first:], inputs[1][shared:]]
    position = [np.arange(first, lengths[0]), np.arange(shared, lengths[1])]
    branch = [np.zeros(shared - first, np.int64), *(np.full(n - shared, 1 + k) for k, n in enumerate(lengths))]
    index = []
    for (columns, _), start in zip(sides, starts, strict=True):
        at_T = len(past_PK) + np.arange(len(columns))
        index.append(np.where(at_T < shared, at_T, at_T - shared + start) - first)
    return PackedPair(
        pair=pair,
        tokens_SK=np.concatenate(tokens),
        position_S=np.concatenate(position),
        branch_S=np.concatenate(branch),
        index=(index[0], index[1]),
        columns=(_said(past_PK, sides[0][0], grid), _said(past_PK, sides[1][0], grid)),
        credit=(sides[0][1], sides[1][1]),
    )


def fitting(pairs: Iterable[Pair], grid: Grid) -> list[Pair]:
    """Those that can be packed; the log names the others. One bad pair must not stop a learner for good."""
    kept = []
    for pair in pairs:
        try:
            _check(pair, grid)
            kept.append(pair)
        except PairError as problem:
            log.warning("left out: %s", problem)
    return kept


def collate(rows: Sequence[PackedPair], grid: Grid, device: torch.device) -> Batch:
    """Put rows into one batch on `device`, filled up to the longest."""
    longest = max(row.positions for row in rows)
    frames = max(len(columns) for row in rows for columns in row.columns)
    shared = min(int((row.branch_S == 0).sum()) for row in rows)
    size = len(rows)
    tokens = torch.full((size, longest, grid.codebooks), _NO_TOKEN)
    position = torch.zeros(size, longest, dtype=torch.int64)
    branch = torch.full((size, longest), _PADDING)
    index = torch.zeros(size, 2, frames, dtype=torch.int64)
    columns = torch.full((size, 2, frames, grid.codebooks), _NO_TOKEN)
    credit = torch.zeros(size, 2, frames)
    for place, row in enumerate(rows):
        end = row.positions
        tokens[place, :end] = torch.from_numpy(row.tokens_SK)
        position[place, :end] = torch.from_numpy(row.position_S)
        branch[place, :end] = torch.from_numpy(row.branch_S)
        for side in range(2):
            length = len(row.index[side])
            index[place, side, :length] = torch.from_numpy(row.index[side])
            columns[place, side, :length] = torch.from_numpy(row.columns[side])
            credit[place, side, :length] = torch.from_numpy(row.credit[side])
    return Batch(
        pairs=tuple(row.pair for row in rows),
        tokens_BSK=tokens.to(device),
        position_BS=position.to(device),
        shared=shared if shared <= grid.context else 0,
        visible_BSS=_visible(position.to(device), branch.to(device), grid.context),
        index_B2N=index.to(device),
        columns_B2NK=columns.to(device),
        credit_B2N=credit.to(device),
    )


def batches(rows: Sequence[PackedPair], grid: Grid, device: torch.device, *, positions: int) -> Iterator[Batch]:
    """Rows of like length together, at most `positions` in a batch (but at least one row); longest first."""
    group: list[PackedPair] = []
    for row in sorted(rows, key=lambda each: (-each.positions, each.pair.id)):
        if group and group[0].positions * (len(group) + 1) > positions:
            yield collate(group, grid, device)
            group = []
        group.append(row)
    if group:
        yield collate(group, grid, device)


def _visible(position_BS: Tensor, branch_BS: Tensor, context: int) -> Tensor:
    distance = position_BS[:, :, None] - position_BS[:, None, :]
    of, at = branch_BS[:, :, None], branch_BS[:, None, :]
    seen = (distance >= 0) & (distance < context) & ((at == 0) | (at == of)) & (of != _PADDING)
    itself = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
    return seen | itself


def _credit(pair: Pair, grid: Grid) -> list[NDArray[np.float32]]:
    """Weights of both sides' frames: the whole reply for content, a window round the event for timing."""
    lengths = [len(side.tokens_TK) for side in (pair.chosen, pair.rejected)]
    if not pair.kind.about_timing:
        return [np.ones(length, np.float32) for length in lengths]
    weights = [
        credit_window(torch.tensor([pair.event]), torch.tensor([length]), length, frame_rate=grid.frame_rate)
        for length in lengths
    ]
    return [each[0].numpy() for each in weights]


def _cut(side: Side, credit_T: NDArray[np.float32], whole: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    end = len(credit_T) if whole else int(np.flatnonzero(credit_T)[-1]) + 1
    return side.tokens_TK[:end].astype(np.int64), credit_T[:end]


def _agreement(chosen_TK: NDArray[np.int64], rejected_TK: NDArray[np.int64]) -> int:
    """How many leading frames are the same on both sides, less one: the last is where they are told apart."""
    least = min(len(chosen_TK), len(rejected_TK)) - 1
    differs = np.flatnonzero((chosen_TK[:least] != rejected_TK[:least]).any(axis=1))
    return int(differs[0]) if len(differs) else least


def _delayed(columns_TK: NDArray[np.integer], grid: Grid) -> NDArray[np.int64]:
    """What the model reads at each position, `[T + 1, K]`, from the columns of T frames."""
    frames = len(columns_TK)
    read = np.full((frames + 1, grid.codebooks), grid.audio_start, np.int64)
    read[:, 0] = grid.text_start
    for codebook, delay in enumerate(grid.delays):
        if frames > delay:
            read[1 + delay :, codebook] = columns_TK[: frames - delay, codebook]
    return read


def _said(past_PK: NDArray[np.integer], columns_TK: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
    """The column that follows each position: the frame's text, and audio of as many frames ago as it is delayed."""
    return _delayed(np.concatenate([past_PK, columns_TK]), grid)[1 + len(past_PK) :]


def _check(pair: Pair, grid: Grid) -> None:
    shapes = [part.shape for part in (pair.context_PK, pair.chosen.tokens_TK, pair.rejected.tokens_TK)]
    if any(len(shape) != 2 or shape[1] != grid.codebooks for shape in shapes) or 0 in (shapes[1][0], shapes[2][0]):
        raise PairError(
            got=f"pair {pair.id} with context and sides of {', '.join(str(list(shape)) for shape in shapes)}",
            expected=f"[frames, {grid.codebooks}], and at least one frame on each side",
            remedy="make its pairs again with the model that is trained",
        )
    if any((side.tokens_TK[:, 0] < 0).any() for side in (pair.chosen, pair.rejected)):
        raise PairError(
            got=f"pair {pair.id} with frames that have no text token",
            expected="0 or more: padding is a token too",
            remedy="make its pairs again",
        )
    if pair.kind.about_timing and any(not weights.any() for weights in _credit(pair, grid)):
        raise PairError(
            got=f"pair {pair.id}, whose event at frame {pair.event} is far from both sides",
            expected="an event whose credit window (-1 s to +2 s) meets both sides",
            remedy="let the sides begin nearer to the event",
        )
