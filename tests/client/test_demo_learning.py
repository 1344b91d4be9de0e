"""The parts of the demo's second half; the whole of it is run by `tests/test_readme.py`."""

from pathlib import Path

import numpy as np
import pytest

from client import demo_learning
from client.demo_learning import Count, Learned, table
from client.demo_people import PEOPLE, hesitations, load_people, plain_questions
from client.errors import ClientError, SoundFileError
from client.sound import FRAME_SIZE, SAMPLE_RATE_HZ


def count(took: int, *said: str) -> Count:
    return Count(calls=4, pauses=2, took_pause=took, right=1, said=said, adapter=None)


def learned(before: Count, after: Count, *, live_to: str | None = "round-0001") -> Learned:
    return Learned(
        before=before, taught=before, after=after, round={}, round_s=1.0, live_from=None, live_to=live_to,
        live_dropped_ms=0,
    )  # fmt: skip


def test_a_hesitation_is_quiet_in_the_middle_and_ends_when_it_says() -> None:
    found = hesitations(load_people(), 8, pause_s=1.0, seed=1)
    assert len({each.voice for each in found}) == 8
    for each in found:
        assert len(each.sound) % FRAME_SIZE == 0
        assert sum(map(len, each.frames())) == len(each.sound)
        assert each.pause_at_s is not None
        pause = each.sound[round((each.pause_at_s + 0.1) * SAMPLE_RATE_HZ) :][: SAMPLE_RATE_HZ // 2]
        assert pause.std() < 0.1 * each.sound.std()
        assert each.sound[round((each.end_s + 0.3) * SAMPLE_RATE_HZ) :].std() < 0.1 * each.sound.std()


def test_who_does_not_stop_says_the_recording_as_it_is() -> None:
    """The same recordings with a pause of a second are a second longer; without a stop their ends lie nearer."""
    people = [each for each in load_people() if each.category in ("sums", "capitals")]
    plain = {(each.text, each.voice): each for each in plain_questions(people, len(people), seed=1)}
    both = [(plain[each.text, each.voice], each) for each in hesitations(people, 8, pause_s=1.0, seed=1)]
    assert len(both) == 8
    for without, with_ in both:
        assert without.pause_at_s is None
        assert with_.end_s - without.end_s == pytest.approx(1.0)
        assert len(with_.sound) - len(without.sound) in (12 * FRAME_SIZE, 13 * FRAME_SIZE)


def test_plain_questions_are_of_every_sort_and_want_no_telling() -> None:
    people = load_people()
    said = {(each.text, each.voice): each.category for each in people}
    sorts = {said[each.text, each.voice] for each in plain_questions(people, 200, seed=1)}
    assert sorts == {each.category for each in people} - {"hum", "tellings"}


def test_the_same_seed_gives_the_same_callers() -> None:
    one, other = (hesitations(load_people(), 4, pause_s=1.0, seed=5) for _ in range(2))
    assert all(np.array_equal(a.sound, b.sound) for a, b in zip(one, other, strict=True))


def test_missing_people_are_named() -> None:
    with pytest.raises(SoundFileError, match=r"index\.json"):
        load_people(PEOPLE / "nobody")


@pytest.mark.parametrize(
    ("story", "happened"),
    [
        (learned(count(2, "a", "b"), count(1, "a", "c")), True),
        (learned(count(1, "a", "b"), count(2, "a", "c")), False),
        (learned(count(2, "a", "b"), count(2, "a", "c")), False),
        (learned(count(2, "a", "b"), count(1, "a", "b")), False),
        (learned(count(2, "a", "b"), count(1, "a", "c"), live_to=None), False),
    ],
)
def test_what_counts_as_having_learned(story: Learned, happened: bool) -> None:
    assert story.happened is happened


def test_the_table_has_both_sides() -> None:
    lines = table(learned(count(2, "a", "b"), count(1, "a", "c"))).splitlines()
    assert lines[1].split() == ["pauses", "taken", "2", "of", "2", "1", "of", "2"]
    assert lines[2].split() == ["questions", "answered", "right", "1", "of", "4", "1", "of", "4"]
    assert "1 of 4 questions were answered in other words" in lines[3]
    assert "the base model and then with round-0001" in lines[4]


def test_a_learner_that_fails_says_why(tmp_path: Path) -> None:
    """A journal in which nothing was kept: there is no round, and no silence about it."""
    with pytest.raises(ClientError, match="no round"):
        demo_learning._one_round(tmp_path, "no-such-checkpoint")


def test_a_learner_that_gets_no_time_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_learning, "_ROUND_S", 0.01)
    with pytest.raises(ClientError, match=r"no round in 0\.01 s: it computes when nothing else does"):
        demo_learning._one_round(tmp_path, "mini")
