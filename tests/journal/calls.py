"""Recorded calls for the tests: known tokens, so that what comes back can be compared."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from server.journal import Journal, JournalWriter, SessionRecord, TickRecord
from server.signals import Signal, SignalKind

CODEBOOKS = 9


def session(name: str, *, started_at: float = 1000.0, user_hash: str = "", keep: bool = True) -> SessionRecord:
    return SessionRecord(
        id=name,
        user_hash=user_hash,
        started_at=started_at,
        keep=keep,
        train=True,
        checkpoint="mini",
        version="test",
        detector="test",
        seed=7,
        codebooks=CODEBOOKS,
        model_codebooks=4,
        frame_rate=12.5,
    )


def tokens(name: str, tick: int) -> np.ndarray:
    """What a session says at a tick."""
    return np.random.default_rng([*name.encode(), tick]).integers(-2, 2048, CODEBOOKS)


def tick(names: Sequence[str], number: int) -> TickRecord:
    return TickRecord(
        sessions=tuple(names),
        ticks=(number,) * len(names),
        tokens_NK=np.stack([tokens(name, number) for name in names]),
        logprob_N=np.full(len(names), -number / 8, np.float32),
    )


def barge_in(number: int, revision: int = 0, confidence: float = 0.5) -> Signal:
    return Signal(
        id=number, kind=SignalKind.BARGE_IN, t0=1.0, t1=2.0, confidence=confidence, revision=revision, latency_s=-0.25
    )


@contextmanager
def recording(journal: Journal, **more: Any) -> Iterator[JournalWriter]:
    writer = JournalWriter(journal.engine, journal.keys, **({"commit_s": 0.02, "most_waiting": 20_000} | more))
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()


def record(journal: Journal, names: Sequence[str], frames: int, **more: Any) -> JournalWriter:
    """Record whole calls."""
    with recording(journal, **more) as writer:
        for name in names:
            writer.begin(session(name))
        for number in range(frames):
            writer.frames(tick(names, number))
        for name in names:
            writer.end(name, "hang_up")
    return writer
