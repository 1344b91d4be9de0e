"""The registry: names, help, units, closed labels, and what is counted."""

import re
import sys
from enum import StrEnum

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.errors import RefusalError, TakenOverError
from server.journal.writer import Figures
from server.metric_labels import CommitResult
from server.metrics import (
    AdapterRole,
    EndReason,
    FrameResult,
    IgnoredMessage,
    JournalFate,
    Metrics,
    Rejection,
    Stage,
    SwapResult,
)
from server.signals import SignalKind
from server.signals.kinds import Signal, State

LABELS: dict[str, dict[str, type[StrEnum]]] = {
    "duologue_tick_duration_seconds": {"stage": Stage},
    "duologue_frames": {"result": FrameResult},
    "duologue_sessions": {"end_reason": EndReason},
    "duologue_admission_rejected": {"reason": Rejection},
    "duologue_messages_ignored": {"kind": IgnoredMessage},
    "duologue_signals": {"signal": SignalKind, "role": AdapterRole},
    "duologue_response_gap_seconds": {"role": AdapterRole},
    "duologue_barge_in_yield_seconds": {"role": AdapterRole},
    "duologue_journal_frames": {"fate": JournalFate},
    "duologue_journal_signals": {"fate": JournalFate},
    "duologue_journal_commits": {"result": CommitResult},
    "duologue_swap": {"result": SwapResult},
}
"""Every family with labels but two: `build_info` has a version, `adapter_info` the ids of at most four adapters."""

UNIT_ENDINGS = {"seconds": "_seconds", "bytes": "_bytes", "ratio": "_ratio"}
PROCESS = "duologue_process_"
"""What the `prometheus_client` package says of the process; its help is its own, and without /proc there is none."""


def families(metrics: Metrics) -> list[Metric]:
    return [family for family in metrics.registry.collect() if not family.name.startswith(PROCESS)]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


def test_every_metric_has_help_and_a_unit_and_our_prefix() -> None:
    metrics = Metrics()
    assert {family.name for family in families(metrics)} == set(metrics.units)
    for family in families(metrics):
        assert re.fullmatch(r"duologue_[a-z_]+", family.name)
        assert family.documentation.endswith("."), family.name
        assert family.documentation[0].isupper(), family.name
        if (ending := UNIT_ENDINGS.get(metrics.units[family.name])) is not None:
            assert family.name.endswith(ending)
        else:
            assert not family.name.endswith(tuple(UNIT_ENDINGS.values()))


def test_every_label_is_a_closed_set_that_exists_from_the_start() -> None:
    metrics = Metrics()
    metrics.set_version("1.2.3")
    for family in families(metrics):
        closed = LABELS.get(family.name, {})
        wanted: set[tuple[StrEnum, ...]] = {()}
        seen = {tuple(sample.labels[label] for label in closed) for sample in family.samples}
        extra = {name for sample in family.samples for name in sample.labels} - set(closed) - {"le"}
        assert extra == ({"version"} if family.name == "duologue_build_info" else set()), family.name
        if closed:
            first, *rest = closed.values()
            wanted = {(a,) for a in first} if not rest else {(a, b) for a in first for b in rest[0]}
        if family.name != "duologue_adapter_info":
            assert seen == wanted, family.name


def test_the_process_is_seen_where_the_system_tells() -> None:
    names = {family.name for family in Metrics().registry.collect() if family.name.startswith(PROCESS)}
    assert (PROCESS + "resident_memory_bytes" in names) is sys.platform.startswith("linux")


def test_prometheus_can_read_it() -> None:
    metrics = Metrics()
    metrics.observe(Stage.TOTAL, 0.07)
    metrics.observe_slack(-0.03)
    metrics.count_frames(FrameResult.SKIPPED, 3)
    read = {family.name: family for family in text_string_to_metric_families(metrics.expose().decode())}
    assert set(metrics.units) <= set(read)
    values = {(sample.name, *sample.labels.values()): sample.value for sample in read["duologue_frames"].samples}
    assert values["duologue_frames_total", "skipped"] == 3
    buckets = [
        sample
        for sample in read["duologue_tick_duration_seconds"].samples
        if sample.name.endswith("_bucket") and sample.labels["stage"] == "total"
    ]
    assert {sample.labels["le"]: sample.value for sample in buckets}["0.07"] == 1
    assert "0.08" in {sample.labels["le"] for sample in buckets}, "the frame's own length is an edge"
    slack = {
        (sample.name, sample.labels.get("le")): sample.value for sample in read["duologue_tick_slack_seconds"].samples
    }
    assert slack["duologue_tick_slack_seconds_bucket", "-0.04"] == 0
    assert slack["duologue_tick_slack_seconds_bucket", "-0.02"] == 1
    assert slack["duologue_tick_slack_seconds_count", None] == 1
    assert ("duologue_tick_slack_seconds_sum", None) not in slack, "a sum that can fall is none"


def test_a_wrong_label_is_a_mistake_of_ours() -> None:
    with pytest.raises(AttributeError):
        Stage.NOWHERE  # type: ignore[attr-defined]  # noqa: B018


def test_a_signal_counts_once_by_what_it_turned_out_to_be() -> None:
    metrics = Metrics()
    first = Signal(id=1, kind=SignalKind.BACKCHANNEL, t0=1.0, t1=1.2, confidence=0.5, state=State.PROVISIONAL)
    metrics.count_signal(first, AdapterRole.LIVE)
    last = Signal(id=1, kind=SignalKind.BARGE_IN, t0=1.0, t1=2.0, confidence=0.9, revision=1)
    metrics.count_signal(last, AdapterRole.LIVE)
    gone = Signal(id=2, kind=SignalKind.CUT_OFF, t0=3.0, t1=3.0, confidence=0.0, revision=1, state=State.WITHDRAWN)
    metrics.count_signal(gone, AdapterRole.LIVE)
    kinds = {kind: value(metrics, "duologue_signals_total", signal=kind, role="live") for kind in SignalKind}
    assert {kind for kind, count in kinds.items() if count} == {SignalKind.BARGE_IN}
    assert kinds[SignalKind.BARGE_IN] == 1
    assert value(metrics, "duologue_signals_total", signal="barge_in", role="base") == 0


def test_latencies_come_from_responses_and_yields_alone() -> None:
    metrics = Metrics()
    for kind, latency_s in ((SignalKind.RESPONSE, -0.1), (SignalKind.YIELD, 0.35), (SignalKind.CUT_OFF, -0.6)):
        signal = Signal(id=1, kind=kind, t0=1.0, t1=1.0, confidence=1.0, latency_s=latency_s)
        metrics.count_signal(signal, AdapterRole.CANARY)
    gap, yielded = "duologue_response_gap_seconds", "duologue_barge_in_yield_seconds"
    assert value(metrics, f"{gap}_count", role="canary") == value(metrics, f"{yielded}_count", role="canary") == 1
    assert value(metrics, f"{gap}_bucket", role="canary", le="0.0") == 1
    assert value(metrics, f"{yielded}_bucket", role="canary", le="0.3") == 0
    assert value(metrics, f"{yielded}_bucket", role="canary", le="0.4") == 1


def test_only_roles_that_speak_now_have_an_adapter() -> None:
    metrics = Metrics()
    metrics.show_adapters({AdapterRole.LIVE: "a-1", AdapterRole.CANARY: "b-2"}, base="mini")
    metrics.show_adapters({AdapterRole.LIVE: "b-2"}, base="mini")
    assert value(metrics, "duologue_adapter_info", role="live", adapter="b-2", base="mini") == 1
    assert "a-1" not in metrics.expose().decode()


def test_the_journal_shows_differences_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("server.metrics.time.monotonic", lambda: now)
    metrics, figures = Metrics(), Figures(durable_frames=10, durable_signals=2, commits=1, commit_s=0.03)
    shown = metrics.show_journal(figures, Figures(), 0)
    now = 103.0
    figures.failed_commits, figures.lost_frames = 1, 5
    shown = metrics.show_journal(figures, shown, 7)
    assert value(metrics, "duologue_journal_frames_total", fate="durable") == 10
    assert value(metrics, "duologue_journal_frames_total", fate="lost") == 5
    assert value(metrics, "duologue_journal_signals_total", fate="durable") == 2
    assert value(metrics, "duologue_journal_commits_total", result="ok") == 1
    assert value(metrics, "duologue_journal_commits_total", result="failed") == 1
    assert value(metrics, "duologue_journal_commit_seconds_bucket", le="0.02") == 0
    assert value(metrics, "duologue_journal_commit_seconds_bucket", le="0.05") == 1
    assert value(metrics, "duologue_journal_queue_depth") == 7
    assert value(metrics, "duologue_journal_unwritten_age_seconds") == 3.0
    metrics.show_journal(figures, shown, 0)
    assert value(metrics, "duologue_journal_unwritten_age_seconds") == 0.0


def test_every_refusal_can_be_counted() -> None:
    """Before a slot as a rejection, or after it as an end: each reason is in one of the closed sets.

    Only a call that was taken over goes on, and is counted when it ends.
    """
    for kind in set(RefusalError.__subclasses__()) - {TakenOverError}:
        assert kind.reason in set(Rejection) | set(EndReason), kind
