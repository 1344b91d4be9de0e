"""The numbers the server shows to Prometheus. Every label is a closed set, and none names a caller.

What each of them means for an operator is in `docs/metrics.md`. Each server has a registry of its own, so that tests
can run several in one process. What is counted for every frame is a `tally`, changed on the event loop only; the rest
may be changed in any thread.
"""

import time
from collections.abc import Mapping
from copy import copy
from enum import StrEnum
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from server.journal.writer import Figures
from server.metric_labels import (
    AdapterRole,
    CommitResult,
    EndReason,
    FrameResult,
    IgnoredMessage,
    JournalFate,
    Rejection,
    Stage,
    SwapResult,
)
from server.signals.kinds import Signal, SignalKind, State
from server.tally import TallyCounter, TallyHistogram

__all__ = [
    "AdapterRole",
    "EndReason",
    "FrameResult",
    "IgnoredMessage",
    "JournalFate",
    "Metrics",
    "Rejection",
    "Stage",
    "SwapResult",
]

_Family = TypeVar("_Family", Counter, Gauge, Histogram)

_PREFIX: Final = "duologue"
_TICK_BOUNDS_S: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06),
    *(0.065, 0.07, 0.075, 0.08, 0.085, 0.09, 0.1, 0.12, 0.16, 0.32, 0.64),
)
"""Fine round a frame's 80 ms, where a percentile is read from them; the shortest are for Opus."""
_SLACK_BOUNDS_S: Final = (-0.16, -0.08, -0.04, -0.02, -0.01, 0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08)
_GAP_BOUNDS_S: Final = (-1.0, -0.5, -0.25, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 5.0)
"""Turn taking: people answer each other after 0.2 s, and 2.5 s without an answer is `no_response`."""
_HEARD_BOUNDS_S: Final = (0.1, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0)
"""The model's own delay is 0.16 s."""
_COMMIT_BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_FLIP_BOUNDS_S: Final = (0.00001, 0.0001, 0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 1)
_WAIT_BOUNDS_S: Final = (0.01, 0.1, 1, 5, 10, 30, 60, 120, 300, 600)
_CALL_BOUNDS_S: Final = (5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.units: dict[str, str] = {}
        """The unit of every metric, by the name of its family."""
        self._of_frames()
        self._of_callers()
        self._of_signals()
        self._of_journal()
        self._of_adapters()
        self._of_process()

    def _of_frames(self) -> None:
        what = "Time of one frame's way through the server, by stage, in seconds."
        tick = TallyHistogram(
            self._named("tick_duration_seconds", "seconds"), what, _TICK_BOUNDS_S, label="stage", values=tuple(Stage)
        )
        what = "What a step left of a frame's time when its replies were Opus, in seconds, below 0 when late."
        slack = TallyHistogram(self._named("tick_slack_seconds", "seconds"), what, _SLACK_BOUNDS_S)
        what = "Frames by what became of them."
        frames = TallyCounter(self._named("frames", "frames"), what, label="result", values=tuple(FrameResult))
        for tally in (tick, slack, frames):
            self.registry.register(tally)
        self._stages = {stage: tick.cells[stage] for stage in Stage}
        self._slack = slack.cells[""]
        self._frames = frames.counts
        self.overruns = self._plain_counter("tick_overrun", "steps", "Steps that took longer than one frame's time.")
        self.step_age = self._plain_gauge(
            "step_age_seconds", "seconds", "How long the engine's present step has taken, in seconds; 0 between steps."
        )
        self.damaged = self._plain_counter(
            "frames_damaged",
            "frames",
            "Caller's frames that were not sound (NaN, infinite, far beyond full scale) and were heard as silence.",
        )
        self.kv_fill = self._plain_gauge(
            "kv_fill_ratio", "ratio", "How full the model's context is, as the mean of the calls that have a slot."
        )
        self.mic_to_speaker = self._plain_histogram(
            "mic_to_speaker_seconds",
            "seconds",
            "How far what the caller hears is behind what the server has heard of him, by the client's word.",
            _HEARD_BOUNDS_S,
        )

    def _of_callers(self) -> None:
        self.active = self._plain_gauge("sessions_active", "sessions", "Calls that have a slot now, parked left out.")
        self.waiting = self._plain_gauge("sessions_waiting", "sessions", "Callers in the queue now.")
        self.parked = self._plain_gauge("sessions_parked", "sessions", "Lost calls whose slot is kept for a resume.")
        self.resumed = self._plain_counter(
            "sessions_resumed", "sessions", "Calls that went on over another connection."
        )
        self._ended = self._counter(
            "sessions", "sessions", "Calls that had a slot and ended, by reason.", end_reason=EndReason
        )
        self.call_length = self._plain_histogram(
            "session_duration_seconds", "seconds", "How long a call had its slot, in seconds.", _CALL_BOUNDS_S
        )
        self.slots = self._plain_gauge("slots_total", "slots", "Callers admitted at once; 0 until the model is loaded.")
        self.capacity = self._plain_gauge(
            "capacity_callers",
            "callers",
            "Callers this machine can hold on time, as measured at the start; 0 until then.",
        )
        self.admission = self._plain_gauge(
            "admission_open", "1 or 0", "Whether slots are given out: 0 while frames are late, else 1."
        )
        self.admission_wait = self._plain_histogram(
            "admission_wait_seconds", "seconds", "How long a caller who got a slot waited for it.", _WAIT_BOUNDS_S
        )
        self._rejected = self._counter(
            "admission_rejected", "calls", "Callers who got no slot, by reason.", reason=Rejection
        )
        self._ignored = self._counter(
            "messages_ignored", "messages", "Messages nothing was done about, by kind.", kind=IgnoredMessage
        )

    def _of_signals(self) -> None:
        self._signals = self._counter(
            "signals",
            "signals",
            "What was seen between the speakers, by what it turned out to be and which adapter spoke.",
            signal=SignalKind,
            role=AdapterRole,
        )
        self._gap = self._histogram(
            "response_gap_seconds",
            "From the end of the user's turn to the start of the model's, in seconds; below 0 when it did not wait.",
            _GAP_BOUNDS_S,
            role=AdapterRole,
        )
        self._yield = self._histogram(
            "barge_in_yield_seconds",
            "From the start of a barge-in to the end of the model's speech, in seconds.",
            _GAP_BOUNDS_S,
            role=AdapterRole,
        )
        self.listening_skipped = self._plain_counter(
            "listening_skipped", "frames", "Frames in which no signals were looked for: the server was too busy."
        )

    def _of_journal(self) -> None:
        self.journal_ok = self._plain_gauge(
            "journal_ok", "1 or 0", "Whether what may be kept is written: 0 after a failure, else 1."
        )
        self.journal_ok.set(1)
        self._journal = self._counter(
            "journal_frames", "frames", "Frames handed to the journal, by what became of them.", fate=JournalFate
        )
        self._journal_signals = self._counter(
            "journal_signals", "signals", "Signals handed to the journal, by what became of them.", fate=JournalFate
        )
        self._commits = self._counter("journal_commits", "commits", "Group commits, by result.", result=CommitResult)
        self.journal_commit = self._plain_histogram(
            "journal_commit_seconds", "seconds", "What group commits took, fsync included.", _COMMIT_BOUNDS_S
        )
        self.journal_queue = self._plain_gauge(
            "journal_queue_depth", "hand-overs", "Hand-overs that wait to be written; beyond 256 frames are dropped."
        )
        self.journal_unwritten = self._plain_gauge(
            "journal_unwritten_age_seconds", "seconds", "How long something has waited since the last commit; else 0."
        )
        self._committed_at = 0.0

    def _of_adapters(self) -> None:
        self._adapter = self._gauge(
            "adapter_info",
            "none, always 1",
            "Always 1, one for each role that speaks now; the labels are the adapter's id and its base model.",
            ["role", "adapter", "base"],
        )
        self._swaps = self._counter(
            "swap", "swaps", "Adapters that were to be put to use, by what became of it.", result=SwapResult
        )
        self.swap_flip = self._plain_histogram(
            "swap_flip_seconds",
            "seconds",
            "How long a tick was held up by the flip to another adapter.",
            _FLIP_BOUNDS_S,
        )
        self.swap_staged = self._plain_gauge(
            "swap_staged_bytes", "bytes", "Bytes of adapters that are read into the engine and may be flipped to."
        )
        self.rollbacks = self._plain_counter(
            "swap_rollback", "rollbacks", "Times every call was taken off an adapter at once."
        )

    def _of_process(self) -> None:
        self._build = self._gauge("build_info", "none, always 1", "Always 1; the labels are versions.", ["version"])
        self.log_dropped = self._plain_counter("log_lines_dropped", "lines", "Log lines nobody took in time.")
        ProcessCollector(namespace=_PREFIX, registry=self.registry)

    # Counting.

    def observe(self, stage: Stage, seconds: float) -> None:
        """Record the time of one stage of one frame, or of one step. On the event loop only."""
        self._stages[stage].observe(seconds)

    def observe_slack(self, seconds: float) -> None:
        """Record what one step left of a frame's time. On the event loop only."""
        self._slack.observe(seconds)

    def count_frames(self, result: FrameResult, frames: int = 1) -> None:
        """Count frames by what became of them. On the event loop only."""
        self._frames[result] += frames

    def count_end(self, reason: EndReason, call_s: float) -> None:
        """Count a call that is over, after `call_s` seconds with a slot."""
        self._ended.labels(reason).inc()
        self.call_length.observe(call_s)

    def count_rejection(self, reason: Rejection) -> None:
        """Count a caller who got no slot."""
        self._rejected.labels(reason).inc()

    def count_ignored(self, kind: IgnoredMessage) -> None:
        """Count a message nothing was done about."""
        self._ignored.labels(kind).inc()

    def count_signal(self, signal: Signal, role: AdapterRole) -> None:
        """Count a signal when it is final, once, and its latency; an earlier version of it changes nothing."""
        if signal.state is not State.FINAL:
            return
        self._signals.labels(signal.kind, role).inc()
        latencies = {SignalKind.RESPONSE: self._gap, SignalKind.YIELD: self._yield}
        if signal.latency_s is not None and signal.kind in latencies:
            latencies[signal.kind].labels(role).observe(signal.latency_s)

    def count_swap(self, result: SwapResult) -> None:
        """Count an adapter that was to be put to use."""
        self._swaps.labels(result).inc()

    def show_adapters(self, speaking: Mapping[AdapterRole, str], *, base: str) -> None:
        """Show which adapter has which role now, by id; roles that nobody has are left out."""
        self._adapter.clear()
        for role, adapter in speaking.items():
            self._adapter.labels(role, adapter, base).set(1)

    def show_journal(self, figures: Figures, shown: Figures, waiting: int) -> Figures:
        """Show what became of frames and signals since `shown`. Returns what is shown now."""
        now, at = copy(figures), time.monotonic()
        for fate in JournalFate:
            for counter, what in ((self._journal, "frames"), (self._journal_signals, "signals")):
                counter.labels(fate).inc(getattr(now, f"{fate}_{what}") - getattr(shown, f"{fate}_{what}"))
        if commits := now.commits - shown.commits:
            self._commits.labels(CommitResult.OK).inc(commits)
            self.journal_commit.observe(now.commit_s)
        self._commits.labels(CommitResult.FAILED).inc(now.failed_commits - shown.failed_commits)
        if commits or not waiting:
            self._committed_at = at
        self.journal_queue.set(waiting)
        self.journal_unwritten.set(at - self._committed_at)
        return now

    def set_version(self, version: str) -> None:
        """Show the version of this program."""
        self._build.labels(version).set(1)

    def expose(self) -> bytes:
        """Give everything in Prometheus' text format."""
        return generate_latest(self.registry)

    # Making. Every child of a closed label exists from the start, at 0.

    def _named(self, name: str, unit: str) -> str:
        self.units[f"{_PREFIX}_{name}"] = unit
        return f"{_PREFIX}_{name}"

    def _counter(self, name: str, unit: str, what: str, **labels: type[StrEnum]) -> Counter:
        made = Counter(self._named(name, unit), what, list(labels), registry=self.registry)
        return _with_children(made, labels)

    def _histogram(self, name: str, what: str, bounds: tuple[float, ...], **labels: type[StrEnum]) -> Histogram:
        made = Histogram(self._named(name, "seconds"), what, list(labels), registry=self.registry, buckets=bounds)
        return _with_children(made, labels)

    def _gauge(self, name: str, unit: str, what: str, labels: list[str]) -> Gauge:
        return Gauge(self._named(name, unit), what, labels, registry=self.registry)

    def _plain_counter(self, name: str, unit: str, what: str) -> Counter:
        return self._counter(name, unit, what)

    def _plain_gauge(self, name: str, unit: str, what: str) -> Gauge:
        return self._gauge(name, unit, what, [])

    def _plain_histogram(self, name: str, unit: str, what: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(self._named(name, unit), what, registry=self.registry, buckets=bounds)


def _with_children(family: _Family, labels: Mapping[str, type[StrEnum]]) -> _Family:
    """Make the children of one or two closed labels."""
    kinds = list(labels.values())
    for first in kinds[0] if kinds else ():
        for rest in [(second,) for second in kinds[1]] if len(kinds) > 1 else [()]:
            family.labels(first, *rest)
    return family
