"""The rows' memory, and the one call that steps them.

Four programs make a frame: hear, think, speak in tokens, speak in sound; between them the C side moves tokens through
the delayed grid. This file owns every array that C reads and writes; it knows neither weights nor who is calling.

Legend: B rows, S samples of a frame, K all codebooks (text, the model's audio, the user's audio).
"""

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.adapters import AdapterMemory
from kernels.cpu.build import load_library
from kernels.cpu.program import MODEL, SAMPLING, Counter, Program, RowMemory, Tokens, check_layout

__all__ = ["FREE", "NOTHING", "Frame", "FrameMachine", "Shape"]

NOTHING: Final = -2
"""A token where nothing is out."""
FREE: Final = -1
"""A token that is not dictated."""

_CODEC_GROUP: Final = 8
"""Rows that the codec works on at a time: more of them would push each other's sound out of the cache."""
_ROWS_FOR_A_THREAD: Final = 4
"""Fewer are not worth waking another thread for."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Numbers of a dialogue model, as `moshi.models.LMModel` names them."""

    frame_size: int
    dep_q: int
    user_codebooks: int
    delays: Sequence[int]
    text_card: int
    card: int
    text_start: int
    audio_start: int
    pad_id: int
    end_pad_id: int

    @property
    def codebooks(self) -> int:
        """Text, the model's audio and the user's audio."""
        return 1 + self.dep_q + self.user_codebooks

    @property
    def ring(self) -> int:
        """Positions of the delayed grid that are kept."""
        return max(self.delays) + 2


class Frame(NamedTuple):
    """One frame of every row; what a row that did not move, or has nothing out, holds is said beside each."""

    tokens_BK: NDArray[np.int64]
    """`NOTHING`."""
    logprob_B: NDArray[np.float32]
    """NaN."""
    pcm_BS: NDArray[np.float32]
    """Zeros."""
    damaged_B: NDArray[np.bool_]
    """The row's sound was not sound (NaN, infinite, or beyond sixteen times full scale), and was heard as silence."""
    seconds: NDArray[np.float64]
    """What the four programs took, `[4]`; the slowest where threads shared the rows."""


class FrameMachine:
    """Rows of one model and their programs. One thread at a time may call it.

    `programs` hear, think, speak in tokens and speak in sound; what adapters may change in them is known to
    `adapters`. `threads` share the rows of a step between them, which
    changes no number. Raises `BuildError` where nothing can be compiled.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        memory: RowMemory,
        shape: Shape,
        rows: int,
        *,
        threads: int = 1,
        adapters: AdapterMemory | None = None,
    ) -> None:
        self._library = load_library()
        check_layout(self._library)
        self.programs = tuple(programs)
        self.shape = shape
        self.rows = rows
        self.row_bytes: int = -(-4 * memory.floats // mmap.PAGESIZE) * mmap.PAGESIZE
        """Memory of one row that is in use; of one that is not, none."""
        self._pages = _pages(rows * self.row_bytes)
        self.memory = np.frombuffer(self._pages, np.float32).reshape(rows, -1)
        self.counters = np.zeros((rows, len(Counter)), np.int64)
        self._states = memory.states
        self._ops = [program.finish() for program in programs]
        self._delays = np.array(shape.delays, np.int32)
        self._token_ring = np.full((rows, shape.codebooks, shape.ring), NOTHING, np.int32)
        self._logprob_ring = np.full((rows, shape.ring), np.nan, np.float32)
        self.tokens = np.full((rows, len(Tokens), shape.codebooks), NOTHING, np.int32)
        self.sampling = np.zeros(rows, SAMPLING)
        self.dictated = np.full((rows, shape.codebooks + 1), FREE, np.int32)
        """What rows must say, whatever their logits are, until it is changed: `[:, 0]` the text token,
        `[:, 1:1 + dep_q]` the audio tokens, and `[:, -1]` the text token that takes the place of any word that the
        row itself would say."""
        self.adapters = adapters or AdapterMemory([], count=0, rank=1)
        self.adapter = np.zeros(rows, np.int32)
        self._model = self._described()
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "duologue-rows") if threads > 1 else None

    def reset(self, row: int) -> None:
        """Take a row back to before its first frame. Its `sampling` and `adapter` are the caller's to set."""
        for state in self._states:
            self.memory[row, state] = 0.0
        self.counters[row] = 0
        self.dictated[row] = FREE

    def copy(self, source: int, row: int) -> None:
        """Let a row go on from where another one is, to the last bit, with its sampling, adapter and dictation."""
        for each in (
            self.memory, self.counters, self.sampling, self.adapter, self.dictated, self.tokens, self._token_ring,
            self._logprob_ring,
        ):  # fmt: skip
            each[row] = each[source]

    def release(self, row: int) -> None:
        """Give a row's memory back to the system. It must be reset before it is stepped again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED, row * self.row_bytes, self.row_bytes)

    def age(self, row: int, frames: int) -> None:
        """Let a row cost what a call of `frames` frames costs: its rings are written, and all of them are read."""
        self.memory[row] = 0.0  # pages that were never written would all be the same one, and in the cache
        self.counters[row] = np.maximum(self.counters[row], frames)

    def step(self, pcm_BS: NDArray[np.float32], rows: NDArray[np.int32]) -> Frame:
        """One frame of `rows`. `pcm_BS` is contiguous, and only those rows of it are read."""
        frame = Frame(
            np.full((self.rows, self.shape.codebooks), NOTHING),
            np.full(self.rows, np.nan, np.float32),
            np.zeros((self.rows, self.shape.frame_size), np.float32),
            np.zeros(self.rows, np.bool_),
            np.zeros(len(self.programs)),
        )
        shares = self._shares(rows)
        if len(shares) > 1 and self._pool is not None:
            times = [np.zeros(len(self.programs)) for _ in shares]
            others = [
                self._pool.submit(self._call, share, pcm_BS, frame, seconds)
                for share, seconds in zip(shares[1:], times[1:], strict=True)
            ]
            self._call(shares[0], pcm_BS, frame, times[0])
            for other in others:
                other.result()
            frame.seconds[:] = np.max(times, axis=0)
        elif shares:
            self._call(shares[0], pcm_BS, frame, frame.seconds)
        return frame

    def _shares(self, rows: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        if not len(rows):
            return []
        count = max(1, min(self._threads, len(rows) // _ROWS_FOR_A_THREAD))
        return [np.ascontiguousarray(share) for share in np.array_split(rows, count)] if count > 1 else [rows]

    def _call(
        self, rows: NDArray[np.int32], pcm_BS: NDArray[np.float32], frame: Frame, seconds: NDArray[np.float64]
    ) -> None:
        """The interpreter's lock is free until it returns."""
        self._library.frame_step(
            self._model.ctypes.data, rows.ctypes.data, len(rows), pcm_BS.ctypes.data, frame.pcm_BS.ctypes.data,
            frame.tokens_BK.ctypes.data, frame.logprob_B.ctypes.data, frame.damaged_B.ctypes.data,
            seconds.ctypes.data,
        )  # fmt: skip

    def _described(self) -> NDArray[Any]:
        """The structure that C takes everything from."""
        model = np.zeros((), MODEL)
        shape = self.shape
        numbers = {
            "frame_size": shape.frame_size,
            "codebooks": shape.codebooks,
            "dep_q": shape.dep_q,
            "user_codebooks": shape.user_codebooks,
            "max_delay": max(shape.delays),
            "ring": shape.ring,
            "text_start": shape.text_start,
            "audio_start": shape.audio_start,
            "pad_id": shape.pad_id,
            "end_pad_id": shape.end_pad_id,
            "group": _CODEC_GROUP,
            "row_floats": self.memory.shape[1],
            "ops": [len(ops) for ops in self._ops],
            "program": [ops.ctypes.data for ops in self._ops],
            "delays": self._delays.ctypes.data,
            "memory": self.memory.ctypes.data,
            "counters": self.counters.ctypes.data,
            "token_ring": self._token_ring.ctypes.data,
            "logprob_ring": self._logprob_ring.ctypes.data,
            "tokens": self.tokens.ctypes.data,
            "how": self.sampling.ctypes.data,
            "dictated": self.dictated.ctypes.data,
            "adapter": self.adapter.ctypes.data,
            "loras": self.adapters.table.ctypes.data,
            "sites": self.adapters.table.shape[1],
        }
        for name, value in numbers.items():
            model[name] = value
        return model


def _pages(size: int) -> mmap.mmap:
    """Memory in pages that come when they are touched."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
