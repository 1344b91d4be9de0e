"""The numbers the server shows to Prometheus. Every label is a closed set, and none names a caller.

Each server has a registry of its own, so that tests can run several in one process.
"""

from collections.abc import Iterator
from copy import copy
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.journal.writer import Figures
from server.signals.kinds import SignalKind

__all__ = ["UNITS", "EndReason", "FrameResult", "IgnoredMessage", "JournalFate", "Metrics", "Rejection", "Stage"]

_PREFIX: Final = "duologue"
_TICK_BUCKETS_S: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06),
    *(0.065, 0.07, 0.075, 0.08, 0.085, 0.09, 0.1, 0.12, 0.16, 0.32, 0.64),
)
"""Fine round a frame's 80 ms, where a percentile is read from them; the shortest are for Opus."""

UNITS: Final = {
    "duologue_tick_duration_seconds": "seconds",
    "duologue_tick_overrun": "steps",
    "duologue_frames": "frames",
    "duologue_frames_damaged": "frames",
    "duologue_sessions_active": "sessions",
    "duologue_sessions_waiting": "sessions",
    "duologue_sessions_parked": "sessions",
    "duologue_sessions_resumed": "sessions",
    "duologue_sessions": "sessions",
    "duologue_slots_total": "slots",
    "duologue_capacity_callers": "callers",
    "duologue_admission_open": "1 or 0",
    "duologue_log_lines_dropped": "lines",
    "duologue_admission_rejected": "calls",
    "duologue_messages_ignored": "messages",
    "duologue_signals": "signals",
    "duologue_listening_skipped": "frames",
    "duologue_journal_frames": "frames",
    "duologue_journal_ok": "1 or 0",
    "duologue_journal_commit_seconds": "seconds",
    "duologue_build_info": "none, always 1",
}
"""The unit of every metric, by the name of its family."""


class Stage(StrEnum):
    """Where a frame's time goes. All start and end on one monotonic clock."""

    INGEST = "ingest"
    """Frame complete in the inbox, until the step that takes it begins."""
    STEP = "step"
    """The engine's step, once for all rows in it."""
    ENCODE = "encode"
    """In the step: the codec hears."""
    TEMPORAL = "temporal"
    """In the step: the temporal transformer and the choice of the text token."""
    DEPTH = "depth"
    """In the step: the depth transformer, codebook by codebook."""
    DECODE = "decode"
    """In the step: the codec speaks."""
    OPUS_DECODE = "opus_decode"
    """A piece of a caller's message, at most 512 bytes, from Ogg/Opus to samples; before the frame is complete."""
    OPUS_ENCODE = "opus_encode"
    """One reply, from samples to Opus packets; it is part of `emit`."""
    EMIT = "emit"
    """Step done, until the reply is Opus and about to be written to the socket."""
    TOTAL = "total"
    """Frame complete in the inbox, until its reply is about to be written to the socket."""


class FrameResult(StrEnum):
    """What became of a frame."""

    ON_TIME = "on_time"
    """Answered within one frame's time."""
    LATE = "late"
    """Answered later than that."""
    DROPPED = "dropped"
    """Reply sound thrown away because the caller's socket was slow."""
    SKIPPED = "skipped"
    """Caller's sound thrown away because it came faster than it could be heard."""


class EndReason(StrEnum):
    """Why a call ended."""

    HANG_UP = "hang_up"
    LOST = "lost"
    """The connection broke, and nobody came back in time."""
    BAD_AUDIO = "bad_audio"
    TOO_BIG = "too_big"
    IDLE = "idle"
    TOO_LONG = "too_long"
    FAULT = "fault"
    """The model raised for this call alone."""
    DRAINED = "drained"
    FAILED = "failed"


class Rejection(StrEnum):
    """Why a caller got no slot."""

    BAD_PARAMETER = "bad_parameter"
    BAD_AUDIO = "bad_audio"
    FULL = "full"
    LOADING = "loading"
    DRAINING = "draining"
    FAILED = "failed"
    FAULT = "fault"
    """The engine raised when it opened the slot."""
    NOT_RESUMABLE = "not_resumable"
    LEFT = "left"
    """Hung up, or was lost, while waiting."""


class IgnoredMessage(StrEnum):
    """Messages that are legal, and that nothing is done about."""

    TEXT_FRAME = "text_frame"
    EMPTY = "empty"
    KIND = "kind"
    METADATA = "metadata"


class JournalFate(StrEnum):
    """What became of a frame that may be kept."""

    DURABLE = "durable"
    """On the disk."""
    DROPPED = "dropped"
    """Not taken: the disk was too slow."""
    LOST = "lost"
    """Taken, and then its commit failed."""


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tick = Histogram(
            "tick_duration_seconds",
            "Time of one frame's way through the server, by stage, in seconds.",
            ["stage"],
            namespace=_PREFIX,
            registry=self.registry,
            buckets=_TICK_BUCKETS_S,
        )
        self._frames = self._counter("frames", "Frames by what became of them.", "result")
        self._ended = self._counter("sessions", "Calls that had a slot and ended, by reason.", "end_reason")
        self._rejected = self._counter("admission_rejected", "Callers who got no slot, by reason.", "reason")
        self._ignored = self._counter("messages_ignored", "Messages nothing was done about, by kind.", "kind")
        self.overruns = Counter(
            "tick_overrun", "Steps that took longer than one frame's time.", namespace=_PREFIX, registry=self.registry
        )
        self.damaged = Counter(
            "frames_damaged",
            "Caller's frames that were not sound (NaN, infinite, far beyond full scale) and were heard as silence.",
            namespace=_PREFIX,
            registry=self.registry,
        )
        self.resumed = Counter(
            "sessions_resumed", "Calls that went on over another connection.", namespace=_PREFIX, registry=self.registry
        )
        self.log_dropped = Counter(
            "log_lines_dropped", "Log lines nobody took in time.", namespace=_PREFIX, registry=self.registry
        )
        self._signals = self._counter(
            "signals", "What was seen between the speakers, by what it was at first.", "signal"
        )
        self._journal = self._counter("journal_frames", "Frames handed to the journal, by what became of them.", "fate")
        self.listening_skipped = Counter(
            "listening_skipped",
            "Frames in which no signals were looked for: the server was too busy.",
            namespace=_PREFIX,
            registry=self.registry,
        )
        self.journal_ok = self._gauge("journal_ok", "Whether what may be kept is written: 0 after a failure, else 1.")
        self.journal_ok.set(1)
        self.journal_commit = self._gauge("journal_commit_seconds", "What the last group commit took, in seconds.")
        self.active = self._gauge("sessions_active", "Calls that have a slot now, parked ones left out.")
        self.waiting = self._gauge("sessions_waiting", "Callers in the queue now.")
        self.parked = self._gauge("sessions_parked", "Lost calls whose slot is kept for a resume now.")
        self.slots = self._gauge("slots_total", "Callers admitted at once; 0 until the model is loaded.")
        self.capacity = self._gauge(
            "capacity_callers", "Callers this machine can hold on time, as measured at the start; 0 until then."
        )
        self.admission = self._gauge("admission_open", "Whether slots are given out: 0 while frames are late, else 1.")
        self._build = Gauge(
            "build_info", "Always 1; the labels are versions.", ["version"], namespace=_PREFIX, registry=self.registry
        )
        for labelled, values in self._closed_labels():
            for value in values:
                labelled.labels(value)
        self._stages = {stage: self._tick.labels(stage) for stage in Stage}

    def observe(self, stage: Stage, seconds: float) -> None:
        """Record the time of one stage of one frame, or of one step."""
        self._stages[stage].observe(seconds)

    def count_frames(self, result: FrameResult, frames: int = 1) -> None:
        """Count frames by what became of them."""
        self._frames.labels(result).inc(frames)

    def count_end(self, reason: EndReason) -> None:
        """Count a call that is over."""
        self._ended.labels(reason).inc()

    def count_rejection(self, reason: Rejection) -> None:
        """Count a caller who got no slot."""
        self._rejected.labels(reason).inc()

    def count_ignored(self, kind: IgnoredMessage) -> None:
        """Count a message nothing was done about."""
        self._ignored.labels(kind).inc()

    def count_signal(self, kind: SignalKind) -> None:
        """Count a new signal."""
        self._signals.labels(kind).inc()

    def show_journal(self, figures: Figures, shown: Figures) -> Figures:
        """Show what became of frames since `shown`. Returns what is shown now."""
        now = copy(figures)
        for fate in JournalFate:
            field = f"{fate}_frames"
            self._journal.labels(fate).inc(getattr(now, field) - getattr(shown, field))
        self.journal_commit.set(now.commit_s)
        return now

    def set_version(self, version: str) -> None:
        """Show the version of this program."""
        self._build.labels(version).set(1)

    def expose(self) -> bytes:
        """Give everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, label: str) -> Counter:
        return Counter(name, what, [label], namespace=_PREFIX, registry=self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, namespace=_PREFIX, registry=self.registry)

    def _closed_labels(self) -> Iterator[tuple[Counter | Histogram, type[StrEnum]]]:
        """Pair each labelled metric with its closed set; all children exist from the start, at 0."""
        yield self._tick, Stage
        yield self._frames, FrameResult
        yield self._ended, EndReason
        yield self._rejected, Rejection
        yield self._ignored, IgnoredMessage
        yield self._signals, SignalKind
        yield self._journal, JournalFate
