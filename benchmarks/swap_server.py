"""The server with a recorder of its steps, for `benchmarks.swap`: what a step did when frames came late.

Started as `python -m benchmarks.swap_server FILE --the --server's --flags`. Nothing is changed but that each hand-over
to the event loop is noted, and each pause of the garbage collector; all is written to FILE when the server ends.
"""

import gc
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from server.__main__ import main as serve
from server.boxes import Reply
from server.encoding import EncodedStep
from server.scheduler import Scheduler
from server.session import Session

__all__ = ["LateNote", "Recording", "StepNote", "main"]

_SHORTEST_PAUSE_S: Final = 0.001


class StepNote(msgspec.Struct, frozen=True, array_like=True):
    """One step. Times are monotonic seconds, the same in every process of a machine."""

    due_at: float
    """When the first of its frames was due."""
    began_at: float
    stepped_at: float
    delivered_at: float
    """On the event loop, as Opus."""
    computed_s: float
    """In compiled code."""
    temporal_s: float
    """Of that, by the temporal transformer, most of which is reading keys and values."""
    rows: int
    versions: int
    """Adapters that made it, the base model included."""


class LateNote(msgspec.Struct, frozen=True, array_like=True):
    """An answer that went to its socket late."""

    due_at: float
    began_at: float
    stepped_at: float
    sent_at: float


class Recording(msgspec.Struct, kw_only=True):
    """What a server did."""

    steps: list[StepNote] = []
    late: list[LateNote] = []
    pauses: list[tuple[float, float]] = []
    """Of the garbage collector: when, and seconds."""


def main(path: Path, flags: list[str]) -> None:
    """Serve and write down."""
    recording = Recording()
    deliver, measure = Scheduler._deliver, Session._measure  # noqa: SLF001 - where replies leave, and are counted
    began = 0.0

    def noted(self: Scheduler, encoded: EncodedStep) -> None:
        recording.steps.append(_note(encoded))
        deliver(self, encoded)

    def sent(self: Session, reply: Reply) -> None:
        now = time.monotonic()
        if now - reply.due_at > self.model.frame_s:
            recording.late.append(LateNote(reply.due_at, reply.began_at, reply.stepped_at, now))
        measure(self, reply)

    def collected(phase: str, _info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.monotonic()
        elif (spent := time.monotonic() - began) > _SHORTEST_PAUSE_S:
            recording.pauses.append((began, spent))

    Scheduler._deliver = noted  # type: ignore[method-assign]  # noqa: SLF001
    Session._measure = sent  # type: ignore[method-assign]  # noqa: SLF001
    gc.callbacks.append(collected)
    sys.argv[1:] = flags
    try:
        serve()
    finally:
        path.write_bytes(msgspec.json.encode(recording))


def _note(encoded: EncodedStep) -> StepNote:
    step, now = encoded.step, time.monotonic()
    return StepNote(
        due_at=min((each.reply.due_at for each in encoded.replies), default=now),
        began_at=step.began_at,
        stepped_at=step.stepped_at,
        delivered_at=now,
        computed_s=sum(msgspec.structs.astuple(step.stages)),
        temporal_s=step.stages.temporal,
        rows=len(step.answers),
        versions=len({answer.adapter for answer in step.answers}),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
