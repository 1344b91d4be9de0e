"""The thread that hears: how far behind it may be before anything is left out."""

import threading
import time
from pathlib import Path

import numpy as np

from server.boxes import DueFrame
from server.config import ServerConfig
from server.engine import Engine, StageSeconds
from server.generations import describe
from server.listening import Listening
from server.metrics import Metrics
from server.parameters import CallParameters
from server.protocol import Consent
from server.session import ModelInfo, Session
from server.tick import Answer, Step

SLOTS = 3


def _step(session: Session, model: ModelInfo, *, ago_s: float = 0.0) -> Step:
    """One caller's frame, as most steps are when frames come at different times."""
    now, silence = time.monotonic() - ago_s, np.zeros(model.frame_size, np.float32)
    frame = DueFrame(pcm=silence, at=now, due_at=now)
    answer = Answer(session=session, slot=0, frame=frame, pcm=silence, token=3, adapter="")
    return Step(
        answers=[answer],
        began_at=now,
        stepped_at=now,
        stages=StageSeconds(encode=0.0, temporal=0.0, depth=0.0, decode=0.0),
        tokens_BK=np.zeros((SLOTS, model.codebooks), np.int64),
        logprob_B=np.zeros(SLOTS, np.float32),
        damaged=0,
    )


def test_four_seconds_of_everybodys_frames_may_wait_in_however_many_steps(tiny: Path, tmp_path: Path) -> None:
    """Callers' frames come one by one: steps are many and narrow, and what counts is how much sound waits."""
    model, metrics = describe(Engine.load(tiny, slots=SLOTS, device="cpu")), Metrics()
    session = _session(model, metrics, Consent(keep=True))
    listening = Listening(data_dir=tmp_path, journal_url=None, retention_days=0.0, metrics=metrics)
    held, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        goes_on.wait(120)

    listening.before_keeping = hold
    listening.start(model, lambda _call: None)
    try:
        listening.opened(session, 0, 0)
        assert held.wait(60), "it is busy with what must be written before anything is kept"
        for _ in range(50 * SLOTS):
            listening.heard(_step(session, model))
        assert _left_out(metrics) == 0
        for _ in range(3):
            listening.heard(_step(session, model))
        assert _left_out(metrics) == 3
    finally:
        goes_on.set()
        listening.stop()


def test_who_is_silent_is_told_only_by_what_was_heard_just_now(tiny: Path, tmp_path: Path) -> None:
    """Calls change their adapter then: a thread that is seconds behind would have them change while somebody speaks."""
    model, metrics = describe(Engine.load(tiny, slots=SLOTS, device="cpu")), Metrics()
    session, told = _session(model, metrics, Consent()), threading.Event()
    listening = Listening(data_dir=tmp_path, journal_url=None, retention_days=0.0, metrics=metrics)
    listening.start(model, lambda _call: None)
    listening.watch_silence(lambda: frozenset({0}), lambda _sessions: told.set())
    try:
        listening.opened(session, 0, 0)
        for _ in range(12):
            listening.heard(_step(session, model, ago_s=1.0))
        assert not told.wait(2), "a second of silence, but a second ago"
        while not told.wait(1.0):  # on a busy machine one step may be old when the thread comes to it
            listening.heard(_step(session, model))
    finally:
        listening.stop()


def _session(model: ModelInfo, metrics: Metrics, consent: Consent) -> Session:
    parameters = CallParameters(sampling=model.recommended_sampling, consent=consent)
    return Session(model=model, parameters=parameters, config=ServerConfig(), metrics=metrics, on_frame=lambda: None)


def _left_out(metrics: Metrics) -> float:
    value = metrics.registry.get_sample_value("duologue_listening_skipped_total")
    assert value is not None
    return value
