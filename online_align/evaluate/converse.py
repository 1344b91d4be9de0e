"""Recorded callers and the real engine, frame by frame, as many calls at once as there are slots.

It owns the loop and what was said in it. It knows nothing of what is right.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_align.evaluate.people import FRAME, FRAME_S, Pcm
from server.engine import Engine, SamplingParams

__all__ = ["GREEDY", "Said", "converse", "with_adapter"]

GREEDY = SamplingParams(text_temperature=0.0, audio_temperature=0.0)


class Said(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The model's side of one call. Legend: T steps."""

    tokens_T: NDArray[np.int64]
    """Text tokens by step; padding where it is silent, -2 before anything is out."""
    pcm: Pcm
    """float32 `[T * 1280]` at 16 kHz, as the caller hears it."""
    spoken_T: NDArray[np.int64]
    """Steps whose token says something."""
    words: str

    @property
    def heard_s(self) -> NDArray[np.float64]:
        """When the caller can hear each of `spoken_T` at the earliest: at the end of its step, in seconds."""
        return np.asarray((self.spoken_T + 1) * FRAME_S, np.float64)


def converse(
    engine: Engine, calls: Sequence[Pcm], *, sampling: SamplingParams = GREEDY, adapter: int | None = None
) -> list[Said]:
    """Play every call, float32 `[frames, 1280]`, and listen to its end. The engine's slots must be closed.

    Calls that share a batch are best of one length: shorter ones wait for the longest in it, in silence.
    """
    assert engine.frame_size == FRAME, "the recordings are at 16 kHz, as is the embedded model"
    order = sorted(range(len(calls)), key=lambda i: len(calls[i]))
    found: dict[int, Said] = {}
    for first in range(0, len(order), engine.slots):
        batch = order[first : first + engine.slots]
        for index, said in zip(batch, _together(engine, [calls[i] for i in batch], sampling, adapter), strict=True):
            found[index] = said  # noqa: PERF403 - two levels of comprehension would hide the batches
    return [found[i] for i in range(len(calls))]


def _together(engine: Engine, calls: list[Pcm], sampling: SamplingParams, adapter: int | None) -> list[Said]:
    steps = max(len(call) for call in calls)
    sound = np.zeros((steps, engine.slots, FRAME), np.float32)
    for slot, call in enumerate(calls):
        sound[: len(call), slot] = call
        engine.open(slot, sampling, adapter=adapter, seed=slot)
    active = np.arange(engine.slots) < len(calls)
    outs = [engine.step(sound[step], active) for step in range(steps)]
    for slot in range(len(calls)):
        engine.close(slot)
    tokens = np.stack([out.text.numpy() for out in outs])
    pcm = np.stack([out.pcm.numpy() for out in outs])
    return [_said(engine, tokens[: len(call), slot], pcm[: len(call), slot]) for slot, call in enumerate(calls)]


def _said(engine: Engine, tokens_T: NDArray[np.int64], pcm_TS: Pcm) -> Said:
    silent = (engine.text_padding_id, engine.end_of_text_padding_id)
    spoken = np.flatnonzero((tokens_T >= 0) & ~np.isin(tokens_T, silent))
    words = engine.text_tokenizer.decode([int(token) for token in tokens_T[spoken]])
    return Said(tokens_T=tokens_T, pcm=pcm_TS.reshape(-1), spoken_T=spoken, words=str(words).strip())


def with_adapter(engine: Engine, folder: Path | None) -> int | None:
    """Load an adapter's folder into the engine; None stays the base model. Raises `AdapterError`."""
    return None if folder is None else engine.load_adapter(folder)
