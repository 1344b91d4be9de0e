"""Sound on its way in and out: Ogg/Opus bytes to whole frames, and frames to Opus packets.

This file knows sample rates and the limits of what decodes, `sphn`, and of what encodes: libopus in one call for all
callers (docs/decisions/0087-opus-in-one-call.md), or through `av` where that cannot be had. It knows nothing of
sockets, callers or models.
"""

import functools
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import av
import numpy as np
import sphn
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kernels.cpu import ChangeOfRate, OpusError, OpusSettings, OpusStream, find_libopus
from server.errors import AudioFormatError
from server.protocol import WIRE_SAMPLE_RATE_HZ

__all__ = ["OPUS_RATES_HZ", "PACKET_MS", "Frame", "Resampler", "SoundEncoder", "SoundReader", "encode_all", "slices"]

Frame = NDArray[np.float32]
"""Mono samples between -1 and 1, float32 `[frame_size]`."""

OPUS_RATES_HZ: Final = (8_000, 12_000, 16_000, 24_000, 48_000)

_SLICE_BYTES: Final = 512
"""sphn 0.2.1 refuses to decode more than 120,000 samples in one call. 512 bytes of the thinnest one-packet pages
(31 bytes, 120 ms at 24 kHz) are 46,080; a stream that gets beyond it in one slice is no speech."""

PACKET_MS: Final = 40
"""Of one Opus packet: what the stock server sends."""

_SETTINGS: Final = OpusSettings(
    sample_rate_hz=WIRE_SAMPLE_RATE_HZ,
    bit_rate=48_000,
    complexity=0,
    packet_samples=WIRE_SAMPLE_RATE_HZ * PACKET_MS // 1000,
)
"""Measured on speech at 16 kHz, of one frame: 0.1 ms and a log-spectral distance of 3.6 dB to what went in. The stock
server's encoder takes 0.9 ms for 31 kbit/s and 4.3 dB."""

_LONGEST_HEAD: Final = 27 + 255 + 19
_TAPS_PER_PHASE: Final = 24


def slices(ogg: bytes) -> Iterator[bytes]:
    """Cut the bytes of a message into pieces that `SoundReader.feed` takes: at most a few milliseconds' work each."""
    return (ogg[start : start + _SLICE_BYTES] for start in range(0, len(ogg), _SLICE_BYTES))


class SoundReader:
    """The caller's stream, decoded at the model's rate and cut into frames.

    Opus decodes at any of `OPUS_RATES_HZ`, so what the sender's `OpusHead` says of its own rate does not matter,
    and two channels come out as their mean.
    """

    def __init__(self, *, sample_rate: int, frame_size: int) -> None:
        self._decoder = sphn.OpusStreamReader(sample_rate)
        self._frame_size = frame_size
        self._rest: Frame = np.zeros(0, np.float32)
        self._head = b""

    def feed(self, ogg: bytes) -> Iterator[Frame]:
        """Give the frames that one of `slices` completes; it may be empty, headers only, or several pages.

        Raises `AudioFormatError`; the reader cannot be used after it.
        """
        self._check_head(ogg)
        self._rest = np.concatenate((self._rest, self._decode(ogg)))
        while self._rest.size >= self._frame_size:
            frame, self._rest = self._rest[: self._frame_size], self._rest[self._frame_size :]
            yield frame

    def forget(self) -> None:
        """Drop the samples that do not fill a frame yet. The stream itself goes on."""
        self._rest = self._rest[:0]

    def _decode(self, ogg: bytes) -> Frame:
        try:
            return np.asarray(self._decoder.append_bytes(ogg), np.float32)
        except ValueError as problem:
            raise AudioFormatError(str(problem)) from problem

    def _check_head(self, ogg: bytes) -> None:
        """Refuse what `sphn` would decode to noise: another codec, or more than two channels."""
        if len(self._head) >= _LONGEST_HEAD:
            return
        self._head += ogg[: _LONGEST_HEAD - len(self._head)]
        page = self._head
        if len(page) < 27 or len(page) < 27 + page[26] + 19 or not page.startswith(b"OggS"):
            return
        packet = page[27 + page[26] :]
        begins_a_stream = page[5] & 0x02
        if begins_a_stream and not packet.startswith(b"OpusHead"):
            raise AudioFormatError("an Ogg stream of another codec than Opus")
        if begins_a_stream and (packet[9] > 2 or packet[18] != 0):
            raise AudioFormatError(f"an Opus stream of {packet[9]} channels in mapping family {packet[18]}")


class SoundEncoder:
    """The model's frames as Opus packets of `PACKET_MS` at 24 kHz. For one thread at a time.

    Two packets are one frame, so no sample waits for the next. The encoder itself looks ahead 6.5 ms (`head` says
    so to players). Models of another rate are resampled. Where a C compiler and PyAV's libopus are at hand the frames
    of many encoders are one call (`encode_all`); otherwise, and with `compiled=False`, PyAV makes the same packets.
    """

    def __init__(self, *, sample_rate: int, compiled: bool = True) -> None:
        self._maker = _compiled(sample_rate) if compiled else None
        self._peer = _PyAvEncoder(sample_rate) if self._maker is None else None

    @property
    def head(self) -> bytes:
        """The packet `OpusHead` that players need first."""
        if self._peer is not None:
            return self._peer.head
        assert self._maker is not None, "there is one of the two"
        skip = self._maker.lookahead_samples * 48_000 // WIRE_SAMPLE_RATE_HZ
        return struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, skip, WIRE_SAMPLE_RATE_HZ, 0, 0)

    def encode(self, frame: Frame) -> tuple[bytes, ...]:
        """Encode one frame, float32 `[frame_size]` at the model's rate. Raises `ValueError` or PyAV's errors."""
        (done,) = encode_all([(self, frame)])
        if isinstance(done, Exception):
            raise done
        return done

    @property
    def stream(self) -> OpusStream | None:
        """What one call can encode together with others; None where PyAV does the work."""
        return self._maker

    def encode_alone(self, frame: Frame) -> tuple[bytes, ...]:
        """Have PyAV encode one frame."""
        assert self._peer is not None, "only where PyAV does the work"
        return self._peer.encode(frame)


def encode_all(work: Sequence[tuple[SoundEncoder, Frame]]) -> list[tuple[bytes, ...] | Exception]:
    """Encode a frame for each of several encoders, none of them named twice.

    Gives for each its packets, or why there are none: one that fails leaves the others alone. Holds no lock of the
    interpreter while it encodes.
    """
    done = [_begin(encoder, frame) for encoder, frame in work]
    given = [stream for stream in done if isinstance(stream, OpusStream)]
    if given:
        libopus = find_libopus()
        assert libopus is not None, "it has made these streams"
        libopus.encode(given)
    return [_taken(each) if isinstance(each, OpusStream) else each for each in done]


def _begin(encoder: SoundEncoder, frame: Frame) -> OpusStream | tuple[bytes, ...] | Exception:
    try:
        if encoder.stream is None:
            return encoder.encode_alone(frame)
        encoder.stream.give(frame)
    except (av.FFmpegError, ValueError) as problem:
        return problem
    return encoder.stream


def _taken(stream: OpusStream) -> tuple[bytes, ...] | Exception:
    try:
        return stream.take()
    except OpusError as problem:
        return problem


def _compiled(sample_rate: int) -> OpusStream | None:
    libopus = find_libopus()
    return None if libopus is None else OpusStream(libopus, _SETTINGS, _change_of_rate(sample_rate))


class _PyAvEncoder:
    """One stream by PyAV, which takes the interpreter's lock back several times a packet."""

    def __init__(self, sample_rate: int) -> None:
        self._resample = Resampler(sample_rate, WIRE_SAMPLE_RATE_HZ)
        self._codec = av.CodecContext.create("libopus", "w")
        self._codec.sample_rate = WIRE_SAMPLE_RATE_HZ
        self._codec.layout = "mono"
        self._codec.format = "flt"
        self._codec.bit_rate = _SETTINGS.bit_rate
        self._codec.options = {
            "application": "audio",
            "compression_level": str(_SETTINGS.complexity),
            "frame_duration": str(PACKET_MS),
        }
        self._codec.open()

    @property
    def head(self) -> bytes:
        return bytes(self._codec.extradata or b"")

    def encode(self, frame: Frame) -> tuple[bytes, ...]:
        pcm, samples = self._resample(frame), _SETTINGS.packet_samples
        starts = range(0, pcm.size, samples)
        return tuple(packet for start in starts for packet in self._packets(pcm[start : start + samples]))

    def _packets(self, pcm: Frame) -> Iterator[bytes]:
        block = av.AudioFrame(format="flt", layout="mono", samples=_SETTINGS.packet_samples)
        block.sample_rate = WIRE_SAMPLE_RATE_HZ
        block.planes[0].update(pcm.tobytes())
        return (bytes(packet) for packet in self._codec.encode(block))


class Resampler:
    """Change of rate by a rational factor, block after block, by a polyphase windowed-sinc filter.

    Delays by `_TAPS_PER_PHASE / 2` samples of the slower rate (0.75 ms at 16 kHz). Equal rates pass unchanged.
    """

    def __init__(self, source_hz: int, target_hz: int) -> None:
        common = math.gcd(source_hz, target_hz)
        self._up, self._down = target_hz // common, source_hz // common
        phases = _phases(self._up, self._down)
        starts = [first * self._down // self._up for first in range(self._up)]
        self._width = phases.shape[1] + starts[-1]
        self._kernel = np.zeros((self._width, self._up), np.float32)
        for first, start in enumerate(starts):
            self._kernel[start : start + phases.shape[1], first] = phases[first * self._down % self._up]
        self._past = np.zeros(phases.shape[1] - 1, np.float32)
        self._samples = self._windows = self._past[:0]

    def __call__(self, block: Frame) -> Frame:
        """Resample a block. Its length times the factor must be whole: 80 ms of any Opus rate is."""
        if self._up == self._down:
            return block
        if self._samples.size != self._past.size + block.size:
            self._make_room(block.size)
        past = self._past.size
        self._samples[past:] = block
        out = self._windows @ self._kernel
        self._samples[:past] = self._samples[block.size :]
        return out.reshape(-1)

    def _make_room(self, size: int) -> None:
        """Lay out blocks of another size. The window onto them is made once: making it costs more than the filter."""
        assert size % self._down == 0, "a block is whole in both rates"
        past = self._samples[: self._past.size] if self._samples.size else self._past
        self._samples = np.concatenate((past, np.zeros(size, np.float32)))
        self._windows = sliding_window_view(self._samples, self._width)[:: self._down]


@functools.cache
def _change_of_rate(source_hz: int) -> ChangeOfRate:
    """The filter of `Resampler` from a rate to the wire's, as compiled code takes it."""
    common = math.gcd(source_hz, WIRE_SAMPLE_RATE_HZ)
    up, down = WIRE_SAMPLE_RATE_HZ // common, source_hz // common
    return ChangeOfRate(up, down, _phases(up, down)[[place * down % up for place in range(up)]])


def _phases(up: int, down: int) -> NDArray[np.float32]:
    """Filter taps, float32 `[up, taps]`, newest sample last; each row is one phase of a low-pass."""
    taps = _TAPS_PER_PHASE * max(1, math.ceil(down / up))
    length = taps * up
    time = (np.arange(length) - (length - 1) / 2) / max(up, down)
    low_pass = np.sinc(time * 0.94) * np.kaiser(length, 7.0)
    low_pass *= up / low_pass.sum()
    return np.ascontiguousarray(low_pass.reshape(taps, up).T[:, ::-1], dtype=np.float32)
