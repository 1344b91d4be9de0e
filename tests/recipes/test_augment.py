"""What is done to voices, so that more of them are heard than were synthesised."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.mini.augment import SAMPLE_RATE, formants_moved, resampled

PITCH_HZ, FORMANT_HZ = 125, 1500


def _vowel(seconds: float = 0.64) -> np.ndarray:
    """A pulse train through one resonance: harmonics of 125 Hz, loudest at 1,500 Hz."""
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    harmonics = np.arange(PITCH_HZ, SAMPLE_RATE // 2, PITCH_HZ)
    levels = 1 / (1 + ((harmonics - FORMANT_HZ) / 200) ** 2)
    waves = levels[:, None] * np.cos(2 * np.pi * harmonics[:, None] * times)
    vowel: np.ndarray = 0.3 * waves.sum(0) / levels.sum()
    return vowel.astype(np.float32)


def _spectrum(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = sound[1024 : 1024 + 8192]
    return np.fft.rfftfreq(8192, 1 / SAMPLE_RATE), np.abs(np.fft.rfft(middle * np.hanning(8192)))


@pytest.mark.parametrize("samples", [1, 100, 128, 9001])
def test_a_throat_as_long_as_before_changes_nothing(samples: int) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
    same = formants_moved(sound, 1.0)
    assert same.dtype == np.float32
    assert np.allclose(same, sound, atol=1e-5)


@pytest.mark.parametrize("factor", [0.88, 1.15])
def test_another_throat_moves_the_formant_and_leaves_pitch_and_length(factor: float) -> None:
    sound = _vowel()
    moved = formants_moved(sound, factor)
    assert moved.shape == sound.shape
    frequencies, level = _spectrum(moved)
    assert frequencies[level.argmax()] == pytest.approx(FORMANT_HZ * factor, abs=PITCH_HZ)
    between = level[np.abs(frequencies % PITCH_HZ - PITCH_HZ / 2) < PITCH_HZ / 8]
    assert between.max() < 0.02 * level.max()  # still nothing but harmonics of the same pitch


def test_resampling_moves_pitch_and_formant_and_length_together() -> None:
    sound = _vowel()
    faster = resampled(sound, 1.1)
    assert len(faster) == int(len(sound) / 1.1)
    frequencies, level = _spectrum(faster)
    assert frequencies[level.argmax()] == pytest.approx(FORMANT_HZ * 1.1, abs=PITCH_HZ / 2)
