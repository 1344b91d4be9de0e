"""Opus in and out at every rate, against `sphn` itself and an Ogg reader written from the RFC."""

import itertools
import math
import struct

import numpy as np
import pytest
import sphn
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import AudioFormatError
from server.ogg import OggWriter
from server.sound import OPUS_RATES_HZ, PACKET_MS, Frame, Resampler, SoundEncoder, SoundReader, slices
from tests.server.caller import voice
from tests.server.ogg import page, pages


def tone(rate: int, seconds: float = 1.6, hertz: float = 440.0) -> Frame:
    return (0.3 * np.sin(2 * math.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def frames(sound: Frame, rate: int) -> list[Frame]:
    size = rate * 2 // 25
    return [sound[start : start + size] for start in range(0, sound.size - size + 1, size)]


def loudest_hertz(sound: Frame, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(sound * np.hanning(sound.size)))) * rate / sound.size)


def read(reader: SoundReader, ogg: bytes) -> list[Frame]:
    return [frame for piece in slices(ogg) for frame in reader.feed(piece)]


class SoundWriter:
    """What a session sends: the encoder's packets in the stream's pages."""

    def __init__(self, *, sample_rate: int) -> None:
        self._encoder = SoundEncoder(sample_rate=sample_rate)
        self._ogg = OggWriter(head=self._encoder.head, packet_ms=PACKET_MS)

    def write(self, frame: Frame) -> bytes:
        return self._ogg.write(self._encoder.encode(frame))


@pytest.mark.parametrize("written", OPUS_RATES_HZ)
@pytest.mark.parametrize("model", OPUS_RATES_HZ)
def test_a_stream_of_any_rate_is_read_at_any_rate(written: int, model: int) -> None:
    encoder = sphn.OpusStreamWriter(written)
    ogg = b"".join(encoder.append_pcm(frame) for frame in frames(tone(written), written))
    heard = read(SoundReader(sample_rate=model, frame_size=model * 2 // 25), ogg)
    assert len(heard) >= 18
    assert {frame.shape for frame in heard} == {(model * 2 // 25,)}
    assert {frame.dtype for frame in heard} == {np.dtype(np.float32)}
    assert loudest_hertz(np.concatenate(heard), model) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("model", OPUS_RATES_HZ)
@pytest.mark.parametrize("client", [24000, 48000, 16000])
def test_a_reply_of_any_rate_is_read_at_any_rate_without_a_frame_held_back(model: int, client: int) -> None:
    writer, decoder = SoundWriter(sample_rate=model), sphn.OpusStreamReader(client)
    heard = [decoder.append_bytes(writer.write(frame)) for frame in frames(tone(model), model)]
    assert {block.size for block in heard} == {client * 2 // 25}
    joined = np.concatenate(heard)
    assert loudest_hertz(joined, client) == pytest.approx(440, abs=2)
    middle = joined[client // 4 : -client // 4]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / math.sqrt(2), rel=0.1)


def test_replies_joined_are_one_valid_ogg_file() -> None:
    writer = SoundWriter(sample_rate=16000)
    stream = pages(b"".join(writer.write(frame) for frame in frames(tone(16000), 16000)))
    assert stream[0][28:36] == b"OpusHead"
    assert stream[1][28:36] == b"OpusTags"
    assert stream[0][5] == 0x02, "only the first page begins a stream"
    assert all(not one[5] & 0x02 for one in stream[1:])
    assert len({one[14:18] for one in stream}) == 1, "one serial number"
    assert [struct.unpack_from("<I", one, 18)[0] for one in stream] == list(range(len(stream)))
    granules = [struct.unpack_from("<q", one, 6)[0] for one in stream]
    assert granules[:2] == [0, 0]
    assert granules[2:] == [1920 * (1 + n) for n in range(len(stream) - 2)], "40 ms a page, counted at 48 kHz"


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(0, 6000), max_size=12))
def test_how_bytes_are_cut_into_messages_does_not_matter(cuts: list[int]) -> None:
    encoder = sphn.OpusStreamWriter(24000)
    ogg = b"".join(encoder.append_pcm(frame) for frame in voice(10))
    whole = read(SoundReader(sample_rate=16000, frame_size=1280), ogg)
    reader = SoundReader(sample_rate=16000, frame_size=1280)
    edges = sorted({0, len(ogg), *(min(cut, len(ogg)) for cut in cuts)})
    parts = [ogg[a:b] for a, b in itertools.pairwise(edges)]
    heard = [frame for part in parts for frame in read(reader, part)]
    assert np.array_equal(heard, whole)


def test_nothing_headers_only_and_a_second_beginning_are_legal() -> None:
    encoder = sphn.OpusStreamWriter(24000)
    first = encoder.append_pcm(voice(1)[0])
    head = b"".join(pages(first)[:2])
    reader = SoundReader(sample_rate=16000, frame_size=1280)
    assert read(reader, b"") == []
    assert list(reader.feed(b"")) == []
    assert read(reader, head) == []
    assert len(read(reader, first[len(head) :])) == 1
    assert len(read(reader, sphn.OpusStreamWriter(24000).append_pcm(voice(1)[0]))) == 1


def test_half_a_frame_is_forgotten_when_asked() -> None:
    encoder = sphn.OpusStreamWriter(24000)
    reader = SoundReader(sample_rate=24000, frame_size=1920)
    assert read(reader, encoder.append_pcm(voice(1)[0][:960])) == []
    reader.forget()
    assert len(read(reader, encoder.append_pcm(voice(1)[0]))) == 1
    assert read(reader, encoder.append_pcm(voice(1)[0][:960])) == []


def test_stereo_is_heard_as_its_mean(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("opus") / "stereo.opus"
    left = tone(48000)
    for right, level in ((left, 0.3), (-left, 0.0)):
        sphn.write_opus(str(path), np.stack([left, right]), 48000)
        heard = np.concatenate(read(SoundReader(sample_rate=16000, frame_size=1280), path.read_bytes()))
        assert np.abs(heard[4000:-4000]).max() == pytest.approx(level, abs=0.05)


@pytest.mark.parametrize(
    ("ogg", "problem"),
    [
        (b"\xff" * 100, "unexpected ogg capture pattern"),
        (b"RIFF" + bytes(60), "unexpected ogg capture pattern"),
        (page(b"\x01vorbis" + bytes(30), flags=2, sequence=0), "another codec than Opus"),
        (
            page(b"OpusHead" + struct.pack("<BBHIhB", 1, 6, 0, 48000, 0, 1) + bytes(8), flags=2, sequence=0),
            "6 channels",
        ),
        (page(b"OpusHead" + struct.pack("<BBHIhB", 1, 2, 0, 48000, 0, 255), flags=2, sequence=0), "family 255"),
    ],
)
def test_what_is_not_ogg_opus_is_refused(ogg: bytes, problem: str) -> None:
    with pytest.raises(AudioFormatError, match=problem):
        read(SoundReader(sample_rate=16000, frame_size=1280), ogg)


@given(st.data())
def test_damaged_streams_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    encoder = sphn.OpusStreamWriter(24000)
    ogg = bytearray(b"".join(encoder.append_pcm(frame) for frame in voice(3)))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(ogg) - 1))
        ogg[place : place + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    reader = SoundReader(sample_rate=16000, frame_size=1280)
    try:
        heard = read(reader, bytes(ogg))
    except AudioFormatError:
        return
    assert all(frame.shape == (1280,) for frame in heard)


def test_why_messages_are_sliced_sphn_refuses_more_than_120000_samples_in_one_call() -> None:
    """Remove the slices when this fails: `sphn` has learned to read long messages."""
    encoder = sphn.OpusStreamWriter(24000)
    ogg = b"".join(encoder.append_pcm(frame) for frame in voice(63))
    with pytest.raises(ValueError, match="invalid argument"):
        sphn.OpusStreamReader(24000).append_bytes(ogg)
    assert len(read(SoundReader(sample_rate=24000, frame_size=1920), ogg)) == 63


def test_why_replies_leave_at_24_khz_sphn_packs_960_samples_at_any_rate() -> None:
    encoder, decoder = sphn.OpusStreamWriter(16000), sphn.OpusStreamReader(16000)
    sizes = [decoder.append_bytes(encoder.append_pcm(frame)).size for frame in frames(tone(16000, 0.24), 16000)]
    assert sizes == [960, 960, 1920], "60 ms, 60 ms, 120 ms for frames of 80 ms"


@pytest.mark.parametrize("source", OPUS_RATES_HZ)
@pytest.mark.parametrize("hertz", [200.0, 1000.0, 3000.0])
def test_resampling_keeps_a_tone_and_adds_nothing(source: int, hertz: float) -> None:
    resample = Resampler(source, 24000)
    sound = np.concatenate([resample(frame) for frame in frames(tone(source, 1.6, hertz), source)])
    assert sound.size == 24000 * 1.6
    time = np.arange(sound.size) / 24000
    basis = np.stack([np.sin(2 * math.pi * hertz * time), np.cos(2 * math.pi * hertz * time)], axis=1)[2000:-100]
    weights, *_ = np.linalg.lstsq(basis, sound[2000:-100], rcond=None)
    assert np.hypot(*weights) == pytest.approx(0.3, rel=0.01)
    residue = sound[2000:-100] - basis @ weights
    assert np.abs(residue).max() < 0.3 * 10 ** (-50 / 20), "images and noise are 50 dB down"
