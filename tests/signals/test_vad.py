"""Voice activity: speech and no speech, rows that do not know of each other, and the pinned file."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from server.signals import vad
from server.signals.vad import HOP, LevelVad, SileroVad, Vad, VadError, load_vad

SPEECH = Path(__file__).parents[1] / "assets" / "speech" / "trained_03.opus"
RNG = np.random.default_rng(0)


def speech() -> np.ndarray:
    pcm, rate = soundfile.read(SPEECH, dtype="float32")
    assert rate in {16_000, 24_000, 48_000}
    return np.asarray(pcm[:: rate // 16_000] if rate != 24_000 else pcm, np.float32)


def probabilities(ears: Vad, row: int, pcm: np.ndarray, size: int = 1280) -> list[float]:
    ears.open(row)
    return [
        hop.probability
        for start in range(0, len(pcm), size)
        for hop in ears.hear({row: pcm[start : start + size]})[row]
    ]


@pytest.fixture
def silero() -> SileroVad:
    return SileroVad(4, gate_dbfs=-58.0)


def test_speech_is_speech_and_noise_a_tone_and_silence_are_not(silero: SileroVad) -> None:
    t = np.arange(32_000) / 16_000
    assert np.mean(np.array(probabilities(silero, 0, speech())) > 0.5) > 0.6
    for other in (0.1 * RNG.standard_normal(32_000), 0.1 * np.sin(2 * np.pi * 440 * t), np.zeros(32_000)):
        assert np.mean(np.array(probabilities(silero, 0, other.astype(np.float32))) > 0.5) < 0.05


def test_every_whole_hop_is_given_whatever_the_size_of_the_frames(silero: SileroVad) -> None:
    pcm = speech()[:16_000]
    ways = [probabilities(silero, 0, pcm, size) for size in (1280, 512, 333, 16_000)]
    assert {len(way) for way in ways} == {16_000 // HOP}
    for way in ways[1:]:
        assert np.allclose(way, ways[0], atol=1e-5)


def test_a_row_does_not_know_of_the_others(silero: SileroVad) -> None:
    pcm = speech()[:16_000]
    alone = probabilities(silero, 0, pcm)
    for row in range(3):
        silero.open(row)
    together = []
    for start in range(0, len(pcm), 1280):
        frames = {0: pcm[start : start + 1280], 2: 0.3 * RNG.standard_normal(1280).astype(np.float32)}
        if start % 2560:
            frames[1] = pcm[:1280]
        together += [hop.probability for hop in silero.hear(frames)[0]]
    assert np.allclose(alone, together, atol=1e-4)


def test_a_row_opened_again_remembers_nothing(silero: SileroVad) -> None:
    pcm = speech()[:16_000]
    assert probabilities(silero, 1, pcm) == probabilities(silero, 1, pcm)


def test_another_file_is_refused_and_the_level_rule_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vad, "_SHA256", "0" * 64)
    with pytest.raises(VadError, match="expected 0000"):
        SileroVad(1, gate_dbfs=-58.0)
    assert load_vad(1, gate_dbfs=-58.0).name == "level"


def test_the_level_rule_hears_speech_after_silence() -> None:
    found = probabilities(LevelVad(gate_dbfs=-58.0), 0, np.concatenate([np.zeros(16_000, np.float32), speech()]))
    assert max(found[:30]) == 0.0
    assert np.mean(found[32:]) > 0.4
