"""What a tick pays for the journal: the same calls, stepped in real time, with windows in which they are kept or not.

The embedded model's engine, the server's rows and its listening thread are the real ones; sockets and Opus are left
out. Both listen: one is told that the callers permit keeping, the other that they do not. They take turns of some
seconds in one run, so that whatever else the machine does meets both.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.report import Row, compare, note
from server.boxes import HeardFrame
from server.config import ServerConfig
from server.engine import Engine
from server.generations import describe
from server.journal import open_journal
from server.listening import Listening
from server.metrics import Metrics
from server.parameters import CallParameters
from server.protocol import Consent
from server.session import ModelInfo, Session
from server.tick import Rows

__all__ = ["measure_tick"]

_WINDOW: Final = 25
"""Ticks in a turn, two seconds; the first five of each are not counted."""
_SETTLE: Final = 5


def measure_tick(folder: Path, *, callers: int, seconds: float) -> list[Row]:
    """Step so many calls for so long, the journal on the disk of `folder`. Returns the rows."""
    engine = Engine.load("mini", slots=callers, device="cpu")
    engine.warm_up()
    model = describe(engine)
    note(f"{callers} calls in real time, kept and not kept in turns of {_WINDOW * model.frame_s:.0f} s")
    with tempfile.TemporaryDirectory(dir=folder) as data, _listening(Path(data) / "kept", model) as keeps:
        with _listening(Path(data) / "not", model) as forgets:
            on, off = _ticks(engine, model, (keeps, forgets), callers, seconds)
        keeps.stop()
        frames = open_journal(Path(data) / "kept").reader.stats().frames
    remark = f"{len(on)} ticks of {callers} callers each way; {frames} frames kept"
    return [
        _row("tick_ms_p50_journal_on", np.median(on), np.median(off), remark),
        _row("tick_ms_p99_journal_on", np.percentile(on, 99), np.percentile(off, 99), remark),
    ]


def _row(name: str, on: np.floating, off: np.floating, remark: str) -> Row:
    return compare(name, float(on), "ms", better="lower", peer="journal off", peer_value=float(off), remark=remark)


@contextmanager
def _listening(data: Path, model: ModelInfo) -> Iterator[Listening]:
    listening = Listening(data_dir=data, journal_url=None, retention_days=0.0, metrics=Metrics())
    listening.start(model, lambda _call: None)
    try:
        yield listening
    finally:
        listening.stop()


def _ticks(
    engine: Engine, model: ModelInfo, both: Sequence[Listening], callers: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Milliseconds of each tick, its hand-over included, with the journal and without."""
    rows, config, metrics = Rows(engine), ServerConfig(max_speed=1e6), Metrics()
    sessions = []
    for slot in range(callers):
        parameters = CallParameters(sampling=model.recommended_sampling, consent=Consent(keep=True))
        session = Session(model=model, parameters=parameters, config=config, metrics=metrics, on_frame=lambda: None)
        seed = rows.open(session, slot, parameters.sampling, slot)
        assert seed is not None, "a fresh engine has room"
        for listening, keep in zip(both, (True, False), strict=True):
            session.consent = Consent(keep=keep)
            listening.opened(session, slot, seed)
            time.sleep(0.02)  # it reads the consent in its thread
        sessions.append(session)
    source, spent_ms = np.random.default_rng(0), ([], [])  # type: ignore[var-annotated]
    due = time.monotonic()
    for tick in range(round(seconds / model.frame_s)):
        turn = tick // _WINDOW % 2
        sound = 0.1 * source.standard_normal((callers, model.frame_size)).astype(np.float32)
        due += model.frame_s
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        for session, pcm in zip(sessions, sound, strict=True):
            session.inbox.put(HeardFrame(pcm=pcm, at=now))
        began = time.perf_counter()
        made = rows.tick()
        assert made is not None, "everybody has a frame"
        for step in made.steps:
            both[turn].heard(step)
        if tick % _WINDOW >= _SETTLE:
            spent_ms[turn].append(1000 * (time.perf_counter() - began))
    return spent_ms
