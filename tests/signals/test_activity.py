"""Where turns begin and end, on drawn hops and levels: soft beginnings, soft ends, and somebody else in the room."""

import numpy as np
import pytest

from server.signals.activity import ModelTrack, UserTrack
from server.signals.thresholds import DEFAULT
from server.signals.vad import HOP_S, Hop

SILENCE = Hop(probability=0.0, level_dbfs=-90.0)
SOFT = Hop(probability=0.4, level_dbfs=-46.0)
LOUD = Hop(probability=0.95, level_dbfs=-18.0)
ELSEWHERE = Hop(probability=0.4, level_dbfs=-45.0)


def begin(*hops: Hop) -> float:
    """Where the user's turn begins, in hops."""
    track = UserTrack(DEFAULT)
    for index, hop in enumerate(hops):
        track.feed(index * HOP_S, hop)
    assert track.turn is not None
    return track.turn.t0 / HOP_S


@pytest.mark.parametrize("soft", [0, 2, 6])
def test_a_soft_beginning_belongs_to_the_turn_where_nothing_else_is_heard(soft: int) -> None:
    assert begin(*[SILENCE] * 40, *[SOFT] * soft, *[LOUD] * 5) == pytest.approx(40)


def test_as_soft_a_sound_is_no_beginning_where_somebody_talks_all_the_time() -> None:
    assert begin(*[ELSEWHERE] * 40, *[SOFT] * 4, *[LOUD] * 5) == pytest.approx(44)


def test_nothing_is_known_of_a_background_that_was_not_heard() -> None:
    assert begin(*[SOFT] * 4, *[LOUD] * 5) == pytest.approx(4)


def sound(dbfs: float, seconds: float) -> np.ndarray:
    pcm = np.random.default_rng(0).standard_normal(round(seconds * 16_000))
    return (pcm * 10 ** (dbfs / 20)).astype(np.float32)


@pytest.mark.parametrize(("last_dbfs", "ends_s"), [(-49.0, 1.2), (-56.0, 1.0)])
def test_a_soft_last_sound_is_the_models_end_and_its_noise_is_not(last_dbfs: float, ends_s: float) -> None:
    track = ModelTrack(DEFAULT, sample_rate=16_000)
    pcm = np.concatenate([sound(-20.0, 1.0), sound(last_dbfs, 0.2), sound(-62.0, 2.0)])
    for index in range(len(pcm) // 1280):
        track.feed(index * 0.08, pcm[index * 1280 : (index + 1) * 1280], word=False, over_user=False)
    assert track.turn is not None
    assert track.turn.ended
    assert track.turn.t1 == pytest.approx(ends_s, abs=0.021)


def test_nothing_so_soft_begins_a_turn_of_the_model() -> None:
    track = ModelTrack(DEFAULT, sample_rate=16_000)
    track.feed(0.0, sound(-49.0, 1.0), word=False, over_user=False)
    assert track.turn is None


def speech(dbfs: float, hops: int) -> list[Hop]:
    return [Hop(probability=0.95, level_dbfs=dbfs - 8 * (index % 2)) for index in range(hops)]


def length(track: UserTrack, hops: list[Hop], *, first: int = 0) -> float:
    for index, hop in enumerate(hops, first):
        track.feed(index * HOP_S, hop)
    return 0.0 if track.turn is None else track.turn.length_s / HOP_S


def test_a_quiet_callers_first_words_are_one_turn() -> None:
    """Found on a recorded conversation: speech at -30 dBFS fell into pieces below the level that was guessed."""
    assert length(UserTrack(DEFAULT), [*[SILENCE] * 40, *speech(-30.0, 40)]) == pytest.approx(40, abs=1)


def test_who_talks_far_away_for_long_is_not_taken_for_the_caller() -> None:
    assert length(UserTrack(DEFAULT), [*[SILENCE] * 40, *speech(-38.0, 120)]) < 10
