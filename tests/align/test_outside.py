"""The recorded conversation: its turns are read, another recording is refused, and a made-up one is understood."""

from pathlib import Path

import numpy as np
import pytest

from online_align.__main__ import main
from online_align.evaluate.outside import EXPECTED, HandMade, expected_found, read_turns
from server.signals import SignalKind
from tests.signals.sounds import clip

RTTM = """\
SPEAKER sample 1 1.000 1.500 <NA> <NA> speaker90 <NA> <NA>
SPEAKER sample 1 2.900 0.250 <NA> <NA> speaker91 <NA> <NA>
"""


def test_turns_are_read(tmp_path: Path) -> None:
    (tmp_path / "sample.rttm").write_text(RTTM)
    first, second = read_turns(tmp_path / "sample.rttm")
    assert first == HandMade(speaker="speaker90", t0=1.0, t1=2.5)
    assert second.speaker == "speaker91"
    assert second.t1 == pytest.approx(3.15)


@pytest.mark.parametrize("sound", [b"", b"RIFF and more"])
def test_another_recording_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], sound: bytes) -> None:
    if sound:
        (tmp_path / "sample.wav").write_bytes(sound)
        (tmp_path / "sample.rttm").write_text(RTTM)
    assert main(["evaluate", "--suite", "outside", "--recording", str(tmp_path)]) == 2
    assert "out of the wheel of pyannote.audio 4.0.7" in capsys.readouterr().err


def test_each_side_is_heard_where_its_turns_are() -> None:
    question, answer = clip("trained_03.opus"), clip("trained_07.opus")
    ends = 1.0 + len(question) / 16_000
    answered = ends + 0.6
    gap = np.zeros(round(0.6 * 16_000), np.float32)
    pcm = np.concatenate([np.zeros(16_000, np.float32), question, gap, answer, np.zeros(48_000, np.float32)])
    turns = [
        HandMade(speaker="speaker90", t0=1.0, t1=ends),
        HandMade(speaker="speaker91", t0=answered, t1=answered + len(answer) / 16_000),
    ]
    (response,) = expected_found(pcm, turns, "speaker90")
    assert response.kind is SignalKind.RESPONSE
    assert response.t1 == pytest.approx(answered, abs=0.2)
    kinds = {signal.kind for signal in expected_found(pcm, turns, "speaker91")}
    assert SignalKind.RESPONSE not in kinds, "the other way round nobody answers"


def test_what_is_expected_was_written_with_a_latency_where_the_kind_has_one() -> None:
    for labels in EXPECTED.values():
        assert all((label.latency_s is None) is (label.kind is SignalKind.BARGE_IN) for label in labels)
