"""Calls of the embedded model, recorded into a journal as the server does it."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from server.engine import Engine, SamplingParams
from server.engine.engine import CacheDtype
from server.journal import JournalWriter, SessionRecord, TickRecord, open_journal

SAMPLING = SamplingParams(text_temperature=0.8, audio_temperature=0.7)
RATE_HZ = 16_000


def record_call(
    folder: Path,
    name: str,
    said: Sequence[np.ndarray | float],
    *,
    train: bool = False,
    sampling: SamplingParams = SAMPLING,
    cache_dtype: CacheDtype = "auto",
) -> None:
    """Let a caller say something; numbers are seconds of silence."""
    pieces = [np.zeros(round(each * RATE_HZ), np.float32) if isinstance(each, float) else each for each in said]
    sound = np.concatenate(pieces)
    engine = Engine.load("mini", slots=2, device="cpu", cache_dtype=cache_dtype)
    journal = open_journal(folder)
    writer = JournalWriter(journal.engine, journal.keys, most_waiting=20_000)
    writer.start()
    seed = engine.open(1, sampling, seed=77)
    writer.begin(
        SessionRecord(
            id=name, started_at=1.0, checkpoint="mini", version="test", detector="test", seed=seed, train=train,
            sampling=msgspec.json.encode(sampling).decode(),
            codebooks=1 + engine.model_codebooks + engine.user_codebooks,
            model_codebooks=engine.model_codebooks, frame_rate=12.5, cache_dtype=engine.cache_dtype,
        )
    )  # fmt: skip
    tick = 0
    pcm, active = np.zeros((2, engine.frame_size), np.float32), np.array([False, True])
    for start in range(0, len(sound) - engine.frame_size, engine.frame_size):
        pcm[1] = sound[start : start + engine.frame_size]
        out = engine.step(pcm, active)
        if out.text[1] >= 0:
            tokens, logprobs = out.tokens.numpy()[1:], out.logprob.numpy()[1:]
            writer.frames(TickRecord(sessions=(name,), ticks=(tick,), tokens_NK=tokens, logprob_N=logprobs))
            tick += 1
    writer.end(name, "hang_up")
    writer.stop()
    journal.engine.dispose()
