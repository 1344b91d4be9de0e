"""The better side of a pair, said by the model itself: the same past, then another way on, under a wish for its text.

The logged call is dictated to the compiled step up to the frame at which the sides part, so every sum in the model is
what it was; from there on each branch goes its own way: silent for a while, starting now, saying given words, or free
with another seed. What is dictated is text alone, the sound follows from it, so the voice is the model's own. It knows
no signals and no SQL.

Legend: T frames, K tokens of a column (text, model audio, user audio), U user codebooks, B branches.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from kernels.cpu import FREE
from kernels.cpu.program import Tokens as TokenLists
from online_align.replay import as_sound, hear_numbers, use_adapter
from server.engine import SamplingParams
from server.engine.checkpoint import Checkpoint
from server.engine.native import NativeStep
from server.errors import DuologueError

__all__ = ["Branch", "RegenerationError", "Regenerator", "Tokens", "seeds", "silence", "word_pieces"]

_NEVER: Final = -1e9
"""Added to a logit that must not win."""
_LONGEST_WAIT: Final = 8
"""Frames that a given word waits for the model's own time."""
_REST: Final = 12
"""Frames of silence after which a reply is over: the embedded model rests 10 between sentences."""
_SILENCE_S: Final = 2.0
_WORD_START: Final = "▁"

Tokens = NDArray[np.int16]


class RegenerationError(DuologueError):
    """A past that cannot be told again."""


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which the model's side is to go on. Frames count from where the sides part."""

    seed: int
    quiet_until: int = 0
    """Frames that the text stream is held at padding."""
    start_by: int | None = None
    """Frame in which the reply begins if it has not begun; None leaves that to the model."""
    words: tuple[int, ...] = ()
    """Text tokens that are said in place of the model's own; it decides when, within reason. Then it is silent."""


class Regenerator:
    """Continues recorded calls. `branches` go on side by side; rows do not change each other's numbers.

    `adapter` is the folder of the adapter that speaks. Raises `AdapterError`, `BuildError`, `UnsupportedModelError`.
    """

    def __init__(self, checkpoint: Checkpoint, *, branches: int = 8, adapter: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self.branches = branches
        self._step = NativeStep(checkpoint, 1 + branches, max_adapters=1 if adapter else 0, hear=hear_numbers)
        self._adapter = use_adapter(self._step, checkpoint, adapter) if adapter else 0
        self._past: Tokens = np.zeros((0, 0), np.int16)
        self._at = 0

    @property
    def model_codebooks(self) -> int:
        """Codebooks of the model's own sound."""
        return self._step.machine.shape.dep_q

    @property
    def silent(self) -> frozenset[int]:
        """Text tokens that say nothing."""
        shape = self._step.machine.shape
        return frozenset((shape.pad_id, shape.end_pad_id))

    def tell(self, past_TK: Tokens, *, sampling: SamplingParams, seed: int) -> None:
        """Take in a call, from its first frame on, whose branches may part anywhere up to its end.

        `sampling` and `seed` are the call's: with them, a branch of the same seed that is left alone says what was
        said, where the call's keys and values were kept in float32. Raises `RegenerationError` for columns of another
        model.
        """
        if past_TK.ndim != 2 or past_TK.shape[1] != self._step.machine.shape.codebooks:
            raise RegenerationError(
                got=f"columns of shape {past_TK.shape}",
                expected=f"[frames, {self._step.machine.shape.codebooks}]",
                remedy="load the checkpoint that was called",
            )
        self._past, self._at = past_TK, 0
        self._step.open(0, sampling, self._adapter, seed)

    def branch(
        self,
        at: int,
        user_TU: Tokens,
        branches: Sequence[Branch],
        *,
        sampling: SamplingParams | None = None,
        until_over: bool = True,
    ) -> list[Tokens]:
        """Go on from frame `at` in each of `branches`. Returns columns int16 `[frames, K]` of each.

        `user_TU` is what the caller says from there on, and how long it may last. `sampling` is the call's unless it is
        given. A branch ends `_REST` frames after its reply, unless not `until_over`. `at` must not go back between two
        calls of `tell`. Raises `RegenerationError`.
        """
        if not self._at <= at <= len(self._past) or not 0 < len(branches) <= self.branches:
            raise RegenerationError(
                got=f"{len(branches)} branches from frame {at}",
                expected=f"1 to {self.branches}, from frame {self._at} to {len(self._past)}",
                remedy="tell the call again, or make a regenerator of more branches",
            )
        self._advance(at)
        rows = [_Row(self._step, 1 + index, branch, self.checkpoint) for index, branch in enumerate(branches)]
        for row in rows:
            row.open(sampling)
        late = max(self._step.machine.shape.delays)
        for frame in range(len(user_TU) + late):
            if until_over and all(row.over for row in rows):
                break
            heard_U = user_TU[frame - 1] if frame else self._heard(at)
            for row in rows:
                row.dictate(frame, self._past, at)
            columns_BK = self._step_rows([row.number for row in rows], heard_U)
            for row in rows:
                row.take(frame, columns_BK[row.number], late)
        return [row.columns(self._past.shape[1], until_over=until_over) for row in rows]

    def _advance(self, at: int) -> None:
        """Dictate the past up to `at`: row 0 has then made exactly `at` steps."""
        machine = self._step.machine
        for frame in range(self._at, at):
            _dictate_past(machine, 0, self._past, frame)
            self._step_rows([0], self._heard(frame))
        self._at = at

    def _heard(self, step: int) -> Tokens:
        """What the caller's side brings to a step: the frame before; the first step's is never read."""
        first_user = 1 + self._step.machine.shape.dep_q
        return self._past[step - 1, first_user:] if step else self._past[0, first_user:]

    def _step_rows(self, rows: Sequence[int], heard_U: Tokens) -> NDArray[np.int64]:
        moving = torch.zeros(self.branches + 1, dtype=torch.bool)
        moving[list(rows)] = True
        sound = as_sound(heard_U, self.checkpoint.mimi.frame_size).expand(self.branches + 1, -1)
        tokens: NDArray[np.int64] = self._step.step(sound, moving).tokens_BK.numpy()
        return tokens


def _dictate_past(machine: Any, row: int, past_TK: Tokens, step: int, *, end: int | None = None) -> None:
    """Dictate what was said in a step: text and sound of the frames before `end` that their delays bring to it."""
    shape = machine.shape
    end = len(past_TK) if end is None else end
    for place in range(1 + shape.dep_q):
        frame = step - shape.delays[place]
        machine.dictated[row, place] = past_TK[frame, place] if 0 <= frame < end else FREE


class _Row:
    """One branch while it is said."""

    def __init__(self, step: NativeStep, number: int, branch: Branch, checkpoint: Checkpoint) -> None:
        self.number = number
        self._step = step
        self._machine = step.machine
        self._branch = branch
        self._tokenizer = checkpoint.text_tokenizer
        self._left = list(branch.words)
        self._waited = 0
        self._in_word = False
        self._said: list[NDArray[np.int64]] = []
        self._first: int | None = None
        self._last = 0

    @property
    def over(self) -> bool:
        """Whether the reply has been said and it has been silent since."""
        return self._first is not None and not self._left and len(self._said) - self._last > _REST

    def open(self, sampling: SamplingParams | None) -> None:
        """Go on from the past, with the branch's own seed."""
        self._machine.copy(0, self.number)
        if sampling is not None:
            self._step.sample(self.number, sampling)
        self._machine.sampling[self.number]["seed"] = self._branch.seed
        self._pad_mult = float(self._machine.sampling[self.number]["pad_mult"])

    def dictate(self, frame: int, past_TK: Tokens, at: int) -> None:
        """Say what holds for the text of this frame, and for the sound of earlier ones that is still to come."""
        machine, branch, pad = self._machine, self._branch, self._machine.shape.pad_id
        _dictate_past(machine, self.number, past_TK, at + frame, end=at)
        dictated = machine.dictated[self.number]
        dictated[-1] = FREE
        must_speak = branch.start_by is not None and frame >= branch.start_by and self._first is None
        machine.sampling[self.number]["pad_mult"] = _NEVER if must_speak else self._pad_mult
        if frame < branch.quiet_until or (branch.words and not self._left):
            dictated[0] = pad
        elif must_speak and frame == branch.start_by:
            dictated[0] = machine.shape.end_pad_id  # what the model itself writes before a first word
        elif self._left:
            self._dictate_word(dictated, late=must_speak)

    def _dictate_word(self, dictated: NDArray[np.int32], *, late: bool) -> None:
        due = self._left[0]
        goes_on = self._in_word and not str(self._tokenizer.id_to_piece(due)).startswith(_WORD_START)
        if goes_on or late or self._waited >= _LONGEST_WAIT:
            dictated[0] = due
        else:
            dictated[-1] = due

    def take(self, frame: int, column_K: NDArray[np.int64], late: int) -> None:
        """Note what came of the step that says the text of `frame`, and the column that it completes."""
        text = int(self._machine.tokens[self.number, TokenLists.SAID, 0])
        silent = text in (self._machine.shape.pad_id, self._machine.shape.end_pad_id)
        if not silent:
            self._first = frame if self._first is None else self._first
            self._last = frame
            if self._left:
                self._left.pop(0)
        self._in_word = not silent
        self._waited = self._waited + 1 if silent and self._first is not None else 0
        if frame >= late:
            self._said.append(column_K.copy())

    def columns(self, codebooks: int, *, until_over: bool) -> Tokens:
        """All columns, int16 `[T, K]`; those long after the reply's end are left out."""
        said = np.array(self._said, np.int16).reshape(-1, codebooks)
        return said[: self._last + 1 + _REST] if until_over and self._first is not None else said


def silence(mimi: Any) -> Tokens:
    """Tokens of a frame in which nobody makes a sound, int16 `[codebooks]`, as `mimi` hears digital silence."""
    with torch.inference_mode():
        codes = mimi.encode(torch.zeros(1, 1, int(_SILENCE_S * mimi.sample_rate)))
    tokens: Tokens = codes[0, :, -1].numpy().astype(np.int16)
    return tokens


def word_pieces(tokenizer: Any, words: str) -> tuple[int, ...]:
    """Text tokens of `words`."""
    return tuple(int(token) for token in tokenizer.encode(words))


def seeds(name: str, count: int) -> list[int]:
    """As many seeds of 63 bits, always the same for the same `name`."""
    digests = (hashlib.sha256(f"{name}/{number}".encode()).digest() for number in range(count))
    return [int.from_bytes(digest[:8], "little") >> 1 for digest in digests]
