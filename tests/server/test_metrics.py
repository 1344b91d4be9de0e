"""The registry: names, help, units and closed labels."""

from enum import StrEnum

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.errors import RefusalError, TakenOverError
from server.metrics import UNITS, EndReason, FrameResult, IgnoredMessage, JournalFate, Metrics, Rejection, Stage
from server.signals import SignalKind

LABELS: dict[str, type[StrEnum]] = {
    "stage": Stage,
    "result": FrameResult,
    "end_reason": EndReason,
    "reason": Rejection,
    "kind": IgnoredMessage,
    "signal": SignalKind,
    "fate": JournalFate,
}


def test_every_metric_has_help_and_a_unit_and_our_prefix() -> None:
    families = list(Metrics().registry.collect())
    assert {family.name for family in families} == set(UNITS)
    for family in families:
        assert family.name.startswith("duologue_")
        assert family.documentation.endswith("."), family.name
        assert family.documentation[0].isupper(), family.name
        if UNITS[family.name] == "seconds":
            assert family.name.endswith("_seconds")


def test_every_label_is_a_closed_set_that_exists_from_the_start() -> None:
    metrics = Metrics()
    metrics.set_version("1.2.3")
    for family in metrics.registry.collect():
        for sample in family.samples:
            assert set(sample.labels) <= set(LABELS) | {"le", "version"}, sample
        for label in set(LABELS) & {name for sample in family.samples for name in sample.labels}:
            assert {sample.labels[label] for sample in family.samples} == set(LABELS[label])


def test_prometheus_can_read_it() -> None:
    metrics = Metrics()
    metrics.observe(Stage.TOTAL, 0.07)
    metrics.count_frames(FrameResult.SKIPPED, 3)
    read = {family.name: family for family in text_string_to_metric_families(metrics.expose().decode())}
    assert set(UNITS) <= set(read)
    values = {(sample.name, *sample.labels.values()): sample.value for sample in read["duologue_frames"].samples}
    assert values["duologue_frames_total", "skipped"] == 3
    buckets = [
        sample
        for sample in read["duologue_tick_duration_seconds"].samples
        if sample.name.endswith("_bucket") and sample.labels["stage"] == "total"
    ]
    assert {sample.labels["le"]: sample.value for sample in buckets}["0.07"] == 1
    assert "0.08" in {sample.labels["le"] for sample in buckets}, "the frame's own length is an edge"


def test_a_wrong_label_is_a_mistake_of_ours() -> None:
    with pytest.raises(AttributeError):
        Stage.NOWHERE  # type: ignore[attr-defined]  # noqa: B018


def test_every_refusal_can_be_counted() -> None:
    """Before a slot as a rejection, or after it as an end: each reason is in one of the closed sets.

    Only a call that was taken over goes on, and is counted when it ends.
    """
    for kind in set(RefusalError.__subclasses__()) - {TakenOverError}:
        assert kind.reason in set(Rejection) | set(EndReason), kind
