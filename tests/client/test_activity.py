from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.activity import HOP_S, LevelMeter, Span, join_spans, speech_spans, turns
from tests.client.signals import bursts, speechlike


def measured(sound: np.ndarray) -> list[Span]:
    meter = LevelMeter()
    meter.add(sound)
    return speech_spans(meter.levels_dbfs)


def spans(*pairs: tuple[float, float]) -> list[Span]:
    return [Span(start_s=start, end_s=end) for start, end in pairs]


@settings(max_examples=40, deadline=None)
@given(
    start=st.floats(0.2, 1.0),
    length=st.floats(0.15, 2.0),
    level_db=st.floats(-40, -6),
    signal_to_noise_db=st.one_of(st.none(), st.floats(20, 60)),
    seed=st.integers(0, 99),
)
def test_speech_is_found_where_it_is(
    start: float, length: float, level_db: float, signal_to_noise_db: float | None, seed: int
) -> None:
    """At 20 dB over the noise or more, edges are right to two hops."""
    level = 10 ** (level_db / 20)
    noise = 0.0 if signal_to_noise_db is None else level * 10 ** (-signal_to_noise_db / 20)
    (span,) = measured(bursts(4.0, [(start, start + length)], level=level, noise=noise, seed=seed))
    assert span.start_s == pytest.approx(start, abs=2 * HOP_S)
    assert span.end_s == pytest.approx(start + length, abs=2 * HOP_S)


def test_word_gaps_are_bridged_and_pauses_are_not() -> None:
    found = measured(bursts(4.0, [(0.5, 1.0), (1.15, 1.5), (2.0, 3.0)]))
    assert [(round(s.start_s, 1), round(s.end_s, 1)) for s in found] == [(0.5, 1.5), (2.0, 3.0)]


@pytest.mark.parametrize("sound", [np.zeros(24000), bursts(1.0, [], noise=1e-3), bursts(2.0, [(0.5, 0.53)])])
def test_silence_faint_hiss_and_clicks_are_not_speech(sound: np.ndarray) -> None:
    assert measured(sound.astype(np.float32)) == []


def test_a_recording_without_any_pause_is_speech_throughout() -> None:
    (span,) = measured(speechlike(48000))
    assert (span.start_s, span.end_s) == pytest.approx((0.0, 2.0), abs=2 * HOP_S)


@given(cuts=st.lists(st.integers(0, 5000), max_size=8))
def test_levels_do_not_depend_on_how_sound_arrives(cuts: list[int]) -> None:
    sound = speechlike(5000)
    whole, cut = LevelMeter(), LevelMeter()
    whole.add(sound)
    for first, last in pairwise([0, *sorted(cuts), 5000]):
        cut.add(sound[first:last])
    np.testing.assert_allclose(cut.levels_dbfs, whole.levels_dbfs, rtol=1e-6)
    assert len(whole.levels_dbfs) == 5000 // 240


def test_a_pause_inside_a_question_does_not_end_the_turn() -> None:
    assert join_spans(spans((0, 1), (1.8, 2.5), (4, 5)), pause_s=1.0) == spans((0, 2.5), (4, 5))


def test_an_answer_after_the_end_has_a_positive_latency() -> None:
    (turn,) = turns(spans((0.5, 2.0)), spans((2.3, 3.0), (3.2, 4.0)), [2.2, 2.5], heard_after_s=0.17)
    assert turn.reply == Span(start_s=2.3, end_s=4.0)
    assert (turn.latency_s, turn.text_latency_s, turn.heard_latency_s) == (0.3, 0.2, 0.47)


def test_a_model_that_cuts_in_has_a_negative_latency() -> None:
    (turn,) = turns(spans((0.5, 1.2), (1.9, 2.6)), spans((1.5, 4.0)), [])
    assert turn.user.end_s == 2.6
    assert (turn.latency_s, turn.text_latency_s, turn.heard_latency_s) == (-1.1, None, None)


def test_a_backchannel_inside_the_question_is_no_answer() -> None:
    (turn,) = turns(spans((0.0, 3.0)), spans((1.0, 1.3), (3.4, 4.0)), [1.0, 3.3])
    assert (turn.latency_s, turn.text_latency_s) == (0.4, 0.3)


def test_what_the_model_said_before_the_question_is_no_answer() -> None:
    (turn,) = turns(spans((2.0, 3.0)), spans((0.0, 2.5)), [0.0])
    assert turn.reply is None
    assert turn.latency_s is None


def test_an_answer_belongs_to_the_latest_question() -> None:
    first, second = turns(spans((0.0, 1.0), (3.0, 4.0)), spans((4.2, 5.0)), [])
    assert first.reply is None
    assert second.latency_s == 0.2
