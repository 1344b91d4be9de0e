"""The rules, on drawn voice activity: exact times in, exact signals out, revisions under the same id."""

import numpy as np
import pytest

from server.signals import CallDetector, HeardAndSaid, Signal, SignalKind, State
from server.signals.vad import HOP_S, Hop

FRAME, FRAME_S = 1280, 0.08
RNG = np.random.default_rng(3)

Spans = list[tuple[float, float]]


class Call:
    """A call whose two sides speak in given spans of seconds. The user's sound is noise, so nothing is echo."""

    def __init__(self, user: Spans, model: Spans, *, seconds: float, level_dbfs: float = -15.0) -> None:
        self.detector = CallDetector(frame_s=FRAME_S)
        self.told: list[Signal] = []
        self._user, self._model, self._level = user, model, level_dbfs
        self._hops = 0
        for index in range(round(seconds / FRAME_S)):
            self._frame(index)

    def _frame(self, index: int) -> None:
        t = (index * FRAME + np.arange(FRAME)) / 16_000
        speaks = np.any([(t >= a) & (t < b) for a, b in self._model] or [np.zeros(FRAME, bool)], axis=0)
        said = (0.1 * RNG.standard_normal(FRAME) * speaks).astype(np.float32)
        heard = (1e-3 * RNG.standard_normal(FRAME)).astype(np.float32)
        hops = []
        while (self._hops + 1) * HOP_S <= (index + 1) * FRAME_S + 1e-9:
            middle = (self._hops + 0.5) * HOP_S
            voiced = any(a <= middle < b for a, b in self._user)
            hops.append(Hop(probability=float(voiced), level_dbfs=self._level if voiced else -70.0))
            self._hops += 1
        both = HeardAndSaid(heard=heard, said=said, word=bool(speaks[0]) and index % 3 == 0)
        self.told += self.detector.frame(both, hops)

    def close(self, *, hung_up: bool = False) -> dict[SignalKind, list[Signal]]:
        """Last word on every signal that was not withdrawn, by kind."""
        self.told += self.detector.close(hung_up=hung_up)
        latest = {signal.id: signal for signal in self.told}
        kinds: dict[SignalKind, list[Signal]] = {}
        for signal in latest.values():
            assert signal.state is not State.PROVISIONAL, "a closed call has nothing open"
            if signal.state is State.FINAL:
                kinds.setdefault(signal.kind, []).append(signal)
        return kinds


def test_an_answer_is_a_response_with_its_latency() -> None:
    found = Call([(1.0, 2.5)], [(3.0, 4.5)], seconds=7).close()
    (response,) = found.pop(SignalKind.RESPONSE)
    assert not found
    assert response.latency_s == pytest.approx(0.5, abs=0.05)
    assert response.t0 == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize(("early", "kind"), [(0.3, SignalKind.RESPONSE), (0.8, SignalKind.CUT_OFF)])
def test_an_early_answer_keeps_its_sign_and_a_very_early_one_is_a_cut_off(early: float, kind: SignalKind) -> None:
    found = Call([(1.0, 3.0)], [(3.0 - early, 5.0)], seconds=8).close()
    (signal,) = found.pop(kind)
    assert not found
    assert signal.latency_s == pytest.approx(-early, abs=0.06)


def test_a_short_sound_of_the_model_in_the_users_turn_is_no_cut_off() -> None:
    found = Call([(1.0, 4.0)], [(2.0, 2.4), (4.4, 6.0)], seconds=9).close()
    assert set(found) == {SignalKind.RESPONSE}


@pytest.mark.parametrize("gap", [0.4, 0.9, 1.28])
def test_a_pause_taken_over_is_known_when_the_user_goes_on(gap: float) -> None:
    call = Call([(1.0, 2.0), (2.0 + gap, 4.0)], [(2.25, 4.5)], seconds=8)
    found = call.close()
    (taken,) = found.pop(SignalKind.PAUSE_TAKEOVER)
    assert not found, "going on is no barge-in"
    assert taken.t0 == pytest.approx(2.25, abs=0.05)
    first = next(signal for signal in call.told if signal.id == taken.id)
    assert first.kind is SignalKind.RESPONSE
    assert first.state is State.PROVISIONAL


def test_a_pause_left_alone_is_nothing() -> None:
    found = Call([(1.0, 2.0), (2.9, 4.0)], [(4.3, 6.0)], seconds=9).close()
    assert set(found) == {SignalKind.RESPONSE}


def test_a_barge_in_is_announced_as_a_backchannel_first_and_keeps_its_id() -> None:
    call = Call([(2.0, 4.0)], [(1.0, 2.8)], seconds=7)
    found = call.close()
    (barge_in,) = found[SignalKind.BARGE_IN]
    history = [signal for signal in call.told if signal.id == barge_in.id]
    assert history[0].kind is SignalKind.BACKCHANNEL
    assert [signal.revision for signal in history] == sorted({signal.revision for signal in history})
    (yielded,) = found[SignalKind.YIELD]
    assert yielded.of == barge_in.id
    assert yielded.latency_s == pytest.approx(0.8, abs=0.05)
    assert SignalKind.NO_RESPONSE in found, "nobody answered the interruption"


def test_a_model_that_talks_on_does_not_yield() -> None:
    found = Call([(2.0, 3.4)], [(1.0, 7.0)], seconds=9).close()
    assert set(found) == {SignalKind.BARGE_IN, SignalKind.NO_YIELD}
    (refused,) = found[SignalKind.NO_YIELD]
    assert refused.latency_s is not None
    assert refused.latency_s > 1.5


def test_a_model_that_stopped_just_before_yields_with_a_negative_latency() -> None:
    found = Call([(2.6, 4.0)], [(1.0, 2.5)], seconds=6).close()
    (yielded,) = found[SignalKind.YIELD]
    assert yielded.latency_s == pytest.approx(-0.1, abs=0.06)


@pytest.mark.parametrize("length", [0.3, 0.7])
def test_a_short_sound_is_a_backchannel(length: float) -> None:
    found = Call([(3.0, 3.0 + length)], [(1.0, 8.0)], seconds=10).close()
    assert set(found) == {SignalKind.BACKCHANNEL}


def test_silence_after_the_user_is_no_response_once() -> None:
    call = Call([(1.0, 2.0)], [], seconds=9)
    (silence,) = call.close()[SignalKind.NO_RESPONSE]
    assert silence.t0 == pytest.approx(2.0, abs=0.05)
    assert 2.5 <= silence.t1 - silence.t0 < 2.8


def test_a_click_or_a_cough_asks_for_nothing() -> None:
    assert not Call([(1.0, 1.06), (3.0, 3.15)], [], seconds=8).close()


def test_long_talk_is_a_monologue_and_a_user_ends_it() -> None:
    found = Call([], [(1.0, 24.0)], seconds=26).close()
    assert set(found) == {SignalKind.MONOLOGUE}
    assert SignalKind.MONOLOGUE not in Call([(12.0, 13.5)], [(1.0, 24.0)], seconds=26).close()


@pytest.mark.parametrize(("hung_up", "until"), [(True, 5.0), (False, 5.0), (True, 2.0)])
def test_hanging_up_counts_when_it_is_clean_and_the_model_speaks(hung_up: bool, until: float) -> None:
    found = Call([], [(1.0, until)], seconds=5).close(hung_up=hung_up)
    assert (SignalKind.HANG_UP in found) is (hung_up and until == 5.0)


def test_somebody_far_away_makes_no_signal_after_the_user_is_known() -> None:
    call = Call([(1.0, 2.5)], [(2.9, 12.0)], seconds=3)
    call._level = -40.0
    call._user = [(5.0, 7.0)]
    for index in range(round(3 / FRAME_S), round(12 / FRAME_S)):
        call._frame(index)
    assert set(call.close()) == {SignalKind.RESPONSE}


def test_feedback_carries_its_value_and_time() -> None:
    call = Call([], [(1.0, 3.0)], seconds=4)
    (signal,) = call.detector.feedback("down", t=2.0)
    assert (signal.kind, signal.value, signal.t0) == (SignalKind.FEEDBACK, "down", 2.0)


def test_what_was_heard_late_counts_when_it_was_heard() -> None:
    call = Call([(1.0, 2.5)], [(3.0, 4.5)], seconds=0.8)
    call.detector.played(0.4)
    for index in range(10, 100):
        call._frame(index)
    (response,) = call.close()[SignalKind.RESPONSE]
    assert response.latency_s == pytest.approx(0.9, abs=0.1)
