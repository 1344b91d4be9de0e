"""The labelled scenes: a small run reaches the goals, and a detector that finds nothing does not."""

import numpy as np
import pytest

from online_align.evaluate.conditions import Condition
from online_align.evaluate.scenes import Label
from online_align.evaluate.signals import match, measure, rows
from server.signals import Signal, SignalKind

pytestmark = [pytest.mark.mini, pytest.mark.slow]


def test_a_round_in_clean_noise_and_echo() -> None:
    scores = measure(half="report", rounds=1, conditions=(Condition.CLEAN, Condition.NOISE_10, Condition.ECHO_20))
    for condition, kinds in scores.items():
        for kind, score in kinds.items():
            assert score.found, f"{kind} in {condition}"
            assert score.f1 >= 0.8, f"{kind} in {condition}"
    assert not scores[Condition.ECHO_20][SignalKind.BARGE_IN].false
    names = {row.name for row in rows(scores)}
    assert {"barge_in_f1_clean", "barge_in_f1_noisy", "barge_in_time_error_ms"} <= names


def test_counting_knows_right_wrong_and_missing() -> None:
    labels = [Label(kind=SignalKind.BARGE_IN, t0=1.0), Label(kind=SignalKind.YIELD, t0=1.0, latency_s=0.5)]
    given = [
        Signal(id=1, kind=SignalKind.BARGE_IN, t0=1.1, t1=2.0, confidence=1.0),
        Signal(id=2, kind=SignalKind.BARGE_IN, t0=1.2, t1=2.0, confidence=1.0),
    ]
    found = match(labels, given)
    barge_in, missed = found[SignalKind.BARGE_IN], found[SignalKind.YIELD]
    assert (barge_in.found, barge_in.false, barge_in.missed) == (1, 1, 0)
    assert np.allclose(barge_in.errors_s, [0.1])
    assert (missed.found, missed.missed, missed.f1) == (0, 1, 0.0)
