"""What is handed to the journal, and what is read back: typed, without a word of SQL.

Legend: N rows of a tick, T frames, K tokens of a column (text, model audio, user audio).
"""

import time
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.signals import Signal

__all__ = ["AdapterChange", "Columns", "SessionRecord", "TickRecord", "pack", "signal_row", "unpack"]

_TOKEN = np.dtype("<i2")
_LOGPROB = np.dtype("<f4")


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A call that may be kept, as it begins. Field for field a row of `sessions`, where each is described."""

    id: str
    user_hash: str = ""
    started_at: float = msgspec.field(default_factory=time.time)
    keep: bool = True
    train: bool = False
    checkpoint: str
    base_sha256: str = ""
    cache_dtype: str = ""
    adapter: str = ""
    version: str
    detector: str
    seed: int
    sampling: str = "{}"
    codebooks: int
    model_codebooks: int
    frame_rate: float
    first_tick: int = 0


class TickRecord(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One frame of every recorded row, as one hand-over."""

    sessions: tuple[str, ...]
    ticks: tuple[int, ...]
    """Of each row: frames with something out since its call began."""
    tokens_NK: NDArray[np.int64]
    logprob_N: NDArray[np.float32]


class Columns(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Frames of one call. `ticks` may have gaps where detail was dropped."""

    ticks_T: NDArray[np.int64]
    tokens_TK: NDArray[np.int16]
    logprob_T: NDArray[np.float32]


class AdapterChange(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that took over in the middle of a call."""

    step: int
    """Of the call, counted from 0: the first one by this adapter."""
    adapter: str
    """Empty for the base model."""


class NumberedSignal(msgspec.Struct, frozen=True, kw_only=True):
    """A signal and whose it is."""

    session: str
    signal: Signal


def pack(tokens: bytes, logprobs: bytes) -> bytes:
    """Join what `unpack` parts."""
    return tokens + logprobs


def unpack(plain: bytes, *, count: int, codebooks: int) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Part the tokens int16 `[count, codebooks]` and the log-probs float32 `[count]`. Raises `ValueError`."""
    size = count * codebooks * _TOKEN.itemsize
    if len(plain) != size + count * _LOGPROB.itemsize:
        raise ValueError(f"{len(plain)} bytes for {count} frames of {codebooks} tokens")
    tokens = np.frombuffer(plain[:size], _TOKEN).reshape(count, codebooks)
    return tokens.astype(np.int16), np.frombuffer(plain[size:], _LOGPROB).astype(np.float32)


def signal_row(session: str, signal: Signal) -> dict[str, Any]:
    """A signal as a row of `signals`."""
    return {
        "session_id": session,
        "number": signal.id,
        "revision": signal.revision,
        "kind": str(signal.kind),
        "t0": signal.t0,
        "t1": signal.t1,
        "confidence": signal.confidence,
        "state": str(signal.state),
        "latency_s": signal.latency_s,
        "of": signal.of,
        "value": signal.value or "",
        "detector": signal.detector,
    }
