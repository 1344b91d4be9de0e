import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import SoundFileError
from client.sound import FRAME_SIZE, SAMPLE_RATE_HZ, CallWriter, WavWriter, read_frames
from tests.client.signals import tone, write_wav

SPEECH = Path(__file__).parent.parent / "assets" / "speech"


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000])
def test_any_rate_comes_out_as_if_resampled_in_one_piece(tmp_path: Path, rate: int) -> None:
    sound = tone(round(2.3 * rate), rate=rate, hz=500)
    frames = np.concatenate(list(read_frames(write_wav(tmp_path / "a.wav", sound, rate=rate))))
    expected = soxr.resample(sound, rate, SAMPLE_RATE_HZ)
    assert len(frames) % FRAME_SIZE == 0
    assert 0 <= len(frames) - len(expected) < FRAME_SIZE
    np.testing.assert_allclose(frames[: len(expected)], expected, atol=2e-4)
    assert not frames[len(expected) :].any()


@pytest.mark.parametrize(("channel", "expected"), [("left", 0.5), ("right", -0.25), ("mix", 0.125)])
def test_a_side_of_a_stereo_file_can_be_chosen(tmp_path: Path, channel: str, expected: float) -> None:
    stereo = np.tile(np.array([0.5, -0.25], np.float32), (FRAME_SIZE, 1))
    (frame,) = read_frames(write_wav(tmp_path / "a.wav", stereo), channel=channel)  # type: ignore[arg-type]
    np.testing.assert_allclose(frame, expected, atol=1e-6)


def test_both_sides_of_a_mono_file_are_the_same(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(FRAME_SIZE))
    np.testing.assert_array_equal(list(read_frames(path, channel="left")), list(read_frames(path, channel="right")))


def test_silence_goes_round_the_file_to_the_sample(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.ones(1000, np.float32))
    sound = np.concatenate(list(read_frames(path, head_s=0.1, tail_s=0.2)))
    assert np.flatnonzero(sound).tolist() == list(range(2400, 3400))
    assert len(sound) == -(-(2400 + 1000 + 4800) // FRAME_SIZE) * FRAME_SIZE


def test_an_empty_file_is_only_its_silence(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(0, np.float32))
    assert list(read_frames(path)) == []
    assert len(list(read_frames(path, tail_s=0.16))) == 2


def test_opus_files_can_be_said() -> None:
    frames = list(read_frames(SPEECH / "demo_2.opus"))
    assert 10 < len(frames) < 60
    assert np.abs(np.concatenate(frames)).max() > 0.05


def test_a_long_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 48000, 2, subtype="PCM_16") as file:
        for _ in range(120):
            file.write(np.zeros((48000, 2)))
    tracemalloc.start()
    try:
        with WavWriter(tmp_path / "copy.wav") as copy:
            for frame in read_frames(path):
                copy.write(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000, "120 s are 23 MB"


@pytest.mark.parametrize("content", [None, b"", b"this is no sound", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_sound_file_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SoundFileError, match=r"a\.wav"):
        read_frames(path)


@pytest.mark.parametrize("writer", [WavWriter, CallWriter])
def test_a_file_that_cannot_be_written_is_refused_by_name(tmp_path: Path, writer: type[WavWriter]) -> None:
    with pytest.raises(SoundFileError, match="nowhere"):
        writer(tmp_path / "nowhere" / "a.wav")


def test_what_is_too_loud_is_clipped_and_not_wrapped(tmp_path: Path) -> None:
    with WavWriter(tmp_path / "a.wav") as writer:
        writer.write(np.array([2.0, -2.0, 0.5], np.float32))
    sound, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == SAMPLE_RATE_HZ
    np.testing.assert_allclose(sound, [1.0, -1.0, 0.5], atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(st.tuples(st.booleans(), st.integers(0, 700)), max_size=12))
def test_sides_stay_aligned_however_they_arrive(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[bool, int]]
) -> None:
    path = tmp_path_factory.mktemp("call") / "call.wav"
    sides: dict[bool, list[np.ndarray]] = {True: [], False: []}
    with CallWriter(path) as writer:
        for seed, (is_user, length) in enumerate(blocks):
            block = np.random.default_rng(seed).uniform(-1, 1, length).astype(np.float32)
            sides[is_user].append(block)
            (writer.user if is_user else writer.model)(block)
    user, model = (np.concatenate([*sides[side], np.zeros(0)]) for side in (True, False))
    stereo, _ = soundfile.read(path, always_2d=True)
    assert stereo.shape == (max(len(user), len(model)), 2)
    for column, side in enumerate((user, model)):
        np.testing.assert_allclose(stereo[: len(side), column], side, atol=1e-4)
        assert not stereo[len(side) :, column].any()
