"""Echo: the model's own voice is known by its waveform at any delay and gain; a person's is not."""

import numpy as np
import pytest

from server.signals.echo import EchoGuard
from server.signals.thresholds import DEFAULT
from tests.signals.sounds import clip

FRAME = 1280


def shares(heard: np.ndarray, said: np.ndarray) -> list[float]:
    guard = EchoGuard(reach_s=DEFAULT.echo_reach_s)
    found = []
    for start in range(0, min(len(heard), len(said)) - FRAME, FRAME):
        guard.feed(heard[start : start + FRAME], said[start : start + FRAME])
        if guard.sounding_s >= DEFAULT.echo_sound_s and np.square(heard[start : start + FRAME]).mean() > 10 ** (-6.0):
            found.append(guard.share())
    return found


def late(pcm: np.ndarray, seconds: float, gain_db: float) -> np.ndarray:
    silence = np.zeros(round(seconds * 16_000), np.float32)
    return np.concatenate([silence, pcm * np.float32(10 ** (gain_db / 20))])[: len(pcm)]


@pytest.mark.parametrize("seconds", [0.05, 0.31, 1.1])
@pytest.mark.parametrize("gain_db", [-6.0, -20.0, -30.0])
def test_the_models_voice_coming_back_is_echo(seconds: float, gain_db: float) -> None:
    said = np.concatenate([clip("trained_03.opus"), clip("trained_10.opus")])
    found = shares(late(said, seconds, gain_db), said)
    assert np.mean(np.array(found) > DEFAULT.echo_share) > 0.95


def test_a_person_is_none_even_over_loud_echo() -> None:
    said = np.concatenate([clip("trained_03.opus"), clip("trained_10.opus")])
    person = np.concatenate([clip("trained_07.opus"), clip("demo_4.opus")])
    assert np.mean(np.array(shares(person, said)) < DEFAULT.echo_share) > 0.9
    length = min(len(person), len(said))
    both = person[:length] + late(said, 0.2, -20.0)[:length]
    assert np.mean(np.array(shares(both, said)) < DEFAULT.echo_share) > 0.6


def test_silence_on_either_side_is_no_echo() -> None:
    speech = clip("trained_03.opus")
    assert EchoGuard(reach_s=1.6).share() == 0.0
    assert max(shares(speech, np.zeros_like(speech))) == 0.0
