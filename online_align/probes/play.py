"""Probes through the real engine, as many calls at once as it has slots, and what the model did in each.

It owns the loop and the clock: what a step gives is heard from the end of that step on. It knows nothing of what is
right or wrong.

Legend: T steps of a call, K tokens of a column, S samples of a frame.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import soxr
from numpy.typing import NDArray

from online_align.evaluate.people import RATE_HZ, Pcm
from online_align.probes.scenes import Probe
from server.engine import Engine, SamplingParams

__all__ = ["Played", "play"]

_SILENCE_DBFS = -120.0


class Played(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One probe and the model's side of it."""

    probe: Probe
    columns_TK: NDArray[np.int64]
    """Both sides' tokens of the frames that came out: a few less than steps."""
    spoken_s: NDArray[np.floating]
    """When each text token that says something can be heard, in seconds of the call."""
    level_T: NDArray[np.float32]
    """Level of the model's sound in each step, dBFS."""
    frame_s: float
    words: str
    """All it said."""
    words_after: str
    """What it began to say after the caller's end."""


def play(
    engine: Engine, probes: Sequence[Probe], *, adapter: int | None = None, sampling: SamplingParams | None = None
) -> list[Played]:
    """Play every probe to its end. The engine's slots must be closed, and are closed again afterwards.

    `sampling` is what the checkpoint recommends unless given; seeds are the same in every pass.
    """
    calls = [_at_rate(probe.sound, engine) for probe in probes]
    order = sorted(range(len(calls)), key=lambda i: len(calls[i]))
    found: dict[int, Played] = {}
    for first in range(0, len(order), engine.slots):
        batch = order[first : first + engine.slots]
        found |= _together(engine, {i: calls[i] for i in batch}, probes, adapter, sampling)
    return [found[i] for i in range(len(calls))]


def _at_rate(sound: Pcm, engine: Engine) -> Pcm:
    """The same call in the engine's frames, float32 `[T, S]`."""
    whole = sound.reshape(-1)
    if engine.sample_rate != RATE_HZ:
        whole = soxr.resample(whole, RATE_HZ, engine.sample_rate)
    frames = len(whole) // engine.frame_size
    return np.ascontiguousarray(whole[: frames * engine.frame_size].reshape(frames, -1), np.float32)


def _together(
    engine: Engine,
    calls: dict[int, Pcm],
    probes: Sequence[Probe],
    adapter: int | None,
    sampling: SamplingParams | None,
) -> dict[int, Played]:
    numbers = list(calls)
    for slot, number in enumerate(numbers):
        engine.open(slot, sampling, adapter=adapter, seed=number)
    lengths = np.array([len(calls[number]) for number in numbers])
    tokens, levels = [], []
    sound = np.zeros((engine.slots, engine.frame_size), np.float32)
    active = np.zeros(engine.slots, bool)
    for step in range(int(lengths.max())):
        active[: len(numbers)] = step < lengths
        for slot in np.flatnonzero(active).tolist():
            sound[slot] = calls[numbers[slot]][step]
        out = engine.step(sound, active)
        tokens.append(out.tokens[: len(numbers)].numpy())
        levels.append(out.pcm[: len(numbers)].var(dim=1, correction=0).numpy())
    for slot in range(len(numbers)):
        engine.close(slot)
    tokens_TBK, power_TB = np.stack(tokens), np.stack(levels)
    return {
        number: _played(engine, probes[number], tokens_TBK[: lengths[slot], slot], power_TB[: lengths[slot], slot])
        for slot, number in enumerate(numbers)
    }


def _played(engine: Engine, probe: Probe, tokens_TK: NDArray[np.int64], power_T: NDArray[np.float32]) -> Played:
    frame_s = 1 / engine.frame_rate
    silent = (engine.text_padding_id, engine.end_of_text_padding_id)
    spoken = np.flatnonzero((tokens_TK[:, 0] >= 0) & ~np.isin(tokens_TK[:, 0], silent))
    spoken_s = (spoken + 1) * frame_s
    out = tokens_TK[:, 0] >= 0

    def words(which: NDArray[np.integer]) -> str:
        return str(engine.text_tokenizer.decode([int(token) for token in tokens_TK[which, 0]])).strip()

    return Played(
        probe=probe,
        columns_TK=tokens_TK[out],
        spoken_s=spoken_s,
        level_T=(10 * np.log10(power_T + 10 ** (_SILENCE_DBFS / 10))).astype(np.float32),
        frame_s=frame_s,
        words=words(spoken),
        words_after=words(spoken[spoken_s > probe.end_s]),
    )
