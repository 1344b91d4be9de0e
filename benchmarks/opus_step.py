"""What Opus of a step's replies takes in the server's own thread: one call for all rows against PyAV's row after row.

Part of `benchmarks.frame_step`. Both sides encode the same recorded speech with the same settings, as calls of one
`EncodingThread`; their steps take turns, so whatever else the machine does happens to both. Measured twice: with
nothing beside, and beside a thread of Python that computes without rest and so asks for the interpreter's lock all the
time, which is the worst that signals, event loop and swaps together can be.
"""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks.lock_wait import beside_python
from benchmarks.report import Row, compare, note
from benchmarks.servers import checkpoint_folder
from client.sound import read_frames
from server.boxes import DueFrame
from server.config import ServerConfig
from server.encoding import EncodedStep, EncodingThread
from server.engine import Engine, StageSeconds
from server.generations import describe
from server.metrics import Metrics
from server.parameters import read_parameters
from server.session import ModelInfo, Session
from server.sound import Frame, Resampler, SoundEncoder
from server.tick import Answer, Step

__all__ = ["Side", "measure_steps", "opus_rows"]

_SPEECH: Final = Path(__file__).parents[1] / "tests" / "assets" / "speech"
_WARM: Final = 2
_REST_S: Final = 0.01
_PATIENCE_S: Final = 60.0


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """Of each step: seconds until it was delivered, and of the thread's processor time."""

    waited_s: list[float] = msgspec.field(default_factory=list)
    spent_s: list[float] = msgspec.field(default_factory=list)


def opus_rows(checkpoint: str, width: int, steps: int) -> Iterator[Row]:
    """Measure `width` callers, `steps` steps of each side."""
    model = describe(Engine.load(checkpoint_folder(checkpoint), slots=1, device="cpu"))
    for busy in (False, True):
        ours, peer = measure_steps(model, width, steps, busy=busy)
        name = f"opus_step_ms_rows_{width}{'_beside_python' if busy else ''}"
        for share, suffix in ((50, "p50"), (99, "p99")):
            taken = [1000 * float(np.percentile(side.waited_s, share)) for side in (ours, peer)]
            note(f"{name}_{suffix}: {taken[0]:.1f} ms, PyAV {taken[1]:.1f} ms, {steps} steps")
            yield compare(f"{name}_{suffix}", taken[0], "ms", better="lower", peer="PyAV", peer_value=taken[1])
        if not busy:
            spent = [1e6 * statistics.median(side.spent_s) / width for side in (ours, peer)]
            yield compare(
                "opus_us_of_a_frame", spent[0], "us of a core", better="lower", peer="PyAV", peer_value=spent[1]
            )


def measure_steps(model: ModelInfo, width: int, steps: int, *, busy: bool) -> tuple[Side, Side]:
    """Have `width` calls' sound encoded in one call and by PyAV, taking turns. Returns ours and PyAV's."""
    callers = [[_session(model, compiled=compiled) for _ in range(width)] for compiled in (True, False)]
    sound = _speech(model, width, steps + _WARM)
    sides = (Side(), Side())
    delivered = threading.Event()
    arrived: list[tuple[float, float]] = []

    def deliver(_: EncodedStep) -> None:
        arrived.append((time.perf_counter(), time.thread_time()))
        delivered.set()

    thread = EncodingThread(deliver)
    try:
        with beside_python() if busy else nullcontext():
            for turn in range(2 * (steps + _WARM)):
                which = (turn + turn // 2) % 2  # which of a pair comes first changes from pair to pair
                step = _step(callers[which], sound[turn // 2])
                delivered.clear()
                put_at = time.perf_counter()
                thread.put(step)
                if not delivered.wait(_PATIENCE_S):
                    raise TimeoutError(f"a step of {width} rows was not encoded within {_PATIENCE_S:.0f} s")
                if turn >= 2 * _WARM:
                    sides[which].waited_s.append(arrived[-1][0] - put_at)
                    sides[which].spent_s.append(arrived[-1][1] - arrived[-2][1])
                time.sleep(_REST_S)
    finally:
        thread.stop()
    return sides


def _session(model: ModelInfo, *, compiled: bool) -> Session:
    session = Session(
        model=model, parameters=read_parameters({}), config=ServerConfig(), metrics=Metrics(), on_frame=lambda: None
    )
    session.encoder = SoundEncoder(sample_rate=model.sample_rate, compiled=compiled)
    return session


def _speech(model: ModelInfo, width: int, steps: int) -> list[list[Frame]]:
    """Recorded people, each row from another place: `[steps][width]` frames at the model's rate."""
    said = np.concatenate([frame for path in sorted(_SPEECH.glob("demo_*.opus")) for frame in read_frames(path)])
    resample, size = Resampler(24_000, model.sample_rate), 1_920
    frames = [resample(said[at : at + size]).copy() for at in range(0, said.size - size + 1, size)]
    return [[frames[(step + 7 * row) % len(frames)] for row in range(width)] for step in range(steps)]


def _step(sessions: Sequence[Session], sound: Sequence[Frame]) -> Step:
    now = time.monotonic()
    return Step(
        answers=[
            Answer(
                session=session, slot=slot, frame=DueFrame(pcm=pcm, at=now, due_at=now), pcm=pcm, token=0, adapter=""
            )
            for slot, (session, pcm) in enumerate(zip(sessions, sound, strict=True))
        ],
        began_at=now,
        stepped_at=now,
        stages=StageSeconds(encode=0.0, temporal=0.0, depth=0.0, decode=0.0),
        tokens_BK=np.zeros((len(sound), 1), np.int64),
        logprob_B=np.zeros(len(sound), np.float32),
        damaged=0,
    )
