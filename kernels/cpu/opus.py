"""Opus packets of many streams in one call that holds no interpreter lock, by the libopus that PyAV ships.

A binding that lets go of the lock for every packet has to take it back for every packet, and beside threads that
compute each time costs milliseconds; here it is once for all streams. The memory of a stream is Python's, so nothing
needs closing. This file knows libopus and where PyAV keeps it; it knows nothing of calls.
"""

import ctypes
import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.build import BuildError, load_library

__all__ = ["ChangeOfRate", "Libopus", "OpusError", "OpusSettings", "OpusStream", "find_libopus"]

log = logging.getLogger(__name__)

Samples = NDArray[np.float32]

_PACKETS: Final = 4
"""Of one stream in one call, at most."""
_PACKET_BYTES: Final = 2560
"""The longest packet of 40 ms: two frames of 1,275 bytes and what is before them."""

_AUDIO: Final = 2049
_SET_BITRATE: Final = 4002
_SET_VBR: Final = 4006
_SET_COMPLEXITY: Final = 4010
_SET_VBR_CONSTRAINT: Final = 4020
_GET_LOOKAHEAD: Final = 4027


class OpusError(ValueError):
    """libopus or this file refused a block; the message says why."""


class OpusSettings(NamedTuple):
    """What a mono stream of application `audio`, of variable rate without constraint, is made with."""

    sample_rate_hz: int
    bit_rate: int
    complexity: int
    packet_samples: int


class ChangeOfRate(NamedTuple):
    """A polyphase filter before libopus: output `n * up + p` is `taps[p]` times the samples from `n * down + p * down
    // up` on. Equal factors change nothing."""

    up: int
    down: int
    taps: Samples
    """float32 `[up, width]`, newest sample last."""


class _Stream(ctypes.Structure):
    """As in source/opus.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("encoder", "pcm", "taps", "samples", "resampled", "packets", "sizes")),
        *((name, ctypes.c_int32) for name in ("given", "up", "down", "width", "packet_samples", "packet_bytes")),
    )


class Libopus:
    """The library, and the one call that makes the packets of all streams.

    Raises `OSError` or `AttributeError` for a file that is no libopus, `BuildError` without the compiled call.
    """

    def __init__(self, path: Path) -> None:
        self._call = load_library().encode_streams
        self._opus = opus = ctypes.PyDLL(str(path))  # setting up takes microseconds, for which the lock is kept
        opus.opus_encoder_get_size.argtypes = [ctypes.c_int]
        opus.opus_encoder_init.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int, ctypes.c_int]
        opus.opus_encoder_ctl.argtypes = [ctypes.c_void_p, ctypes.c_int]
        opus.opus_strerror.argtypes = [ctypes.c_int]
        opus.opus_strerror.restype = ctypes.c_char_p
        self._encode_float = ctypes.cast(opus.opus_encode_float, ctypes.c_void_p)

    def encode(self, streams: "Sequence[OpusStream]") -> None:
        """Encode what each stream was given, which then has its packets. No stream may be named twice."""
        places = (ctypes.c_void_p * len(streams))(*[stream.place for stream in streams])
        self._call(self._encode_float, places, len(streams))

    def new_encoder(self, settings: OpusSettings) -> "ctypes.Array[ctypes.c_char]":
        """Lay out an encoder in memory of Python's. Raises `OpusError` for settings that libopus refuses."""
        memory = ctypes.create_string_buffer(self._opus.opus_encoder_get_size(1))
        self.check(self._opus.opus_encoder_init(memory, settings.sample_rate_hz, 1, _AUDIO))
        wanted = {
            _SET_BITRATE: settings.bit_rate,
            _SET_COMPLEXITY: settings.complexity,
            _SET_VBR: 1,
            _SET_VBR_CONSTRAINT: 0,
        }
        for request, value in wanted.items():
            self.check(self._opus.opus_encoder_ctl(memory, request, ctypes.c_int32(value)))
        return memory

    def lookahead(self, encoder: "ctypes.Array[ctypes.c_char]") -> int:
        """Samples at the encoder's rate by which it is behind."""
        samples = ctypes.c_int32()
        self.check(self._opus.opus_encoder_ctl(encoder, _GET_LOOKAHEAD, ctypes.byref(samples)))
        return samples.value

    def check(self, result: int) -> int:
        """Raise `OpusError` for a result that is one of libopus' errors."""
        if result < 0:
            raise OpusError(f"libopus: {self._opus.opus_strerror(result).decode()} ({result})")
        return result


class OpusStream:
    """One encoder and what its filter remembers. For one thread at a time."""

    def __init__(self, codec: Libopus, settings: OpusSettings, rate: ChangeOfRate) -> None:
        self._codec = codec
        self._encoder = codec.new_encoder(settings)
        self.lookahead_samples: Final = codec.lookahead(self._encoder)
        self._taps = np.ascontiguousarray(rate.taps, np.float32)
        self._most = _PACKETS * settings.packet_samples
        width = self._taps.shape[1]
        self._samples = np.zeros(width - 1 + self._most * rate.down // rate.up, np.float32)
        self._resampled = np.empty(self._most if rate.up != rate.down else 0, np.float32)
        self._packets = ctypes.create_string_buffer(_PACKETS * _PACKET_BYTES)
        self._sizes = (ctypes.c_int32 * _PACKETS)()
        self._pcm: Samples | None = None
        self._count = 0
        self._stream = _Stream(
            encoder=ctypes.addressof(self._encoder),
            taps=self._taps.ctypes.data,
            samples=self._samples.ctypes.data,
            resampled=self._resampled.ctypes.data,
            packets=ctypes.addressof(self._packets),
            sizes=ctypes.addressof(self._sizes),
            up=rate.up,
            down=rate.down,
            width=width,
            packet_samples=settings.packet_samples,
            packet_bytes=_PACKET_BYTES,
        )
        self.place: Final = ctypes.addressof(self._stream)

    def give(self, pcm: Samples) -> None:
        """Take a block, float32 `[samples]`, of one to four whole packets. Raises `OpusError` for any other."""
        whole, rest = divmod(pcm.size * self._stream.up, self._stream.down)
        if pcm.ndim != 1 or rest or whole % self._stream.packet_samples or not 0 < whole <= self._most:
            raise OpusError(f"a block of shape {pcm.shape} is not one to {_PACKETS} whole packets")
        self._pcm = np.ascontiguousarray(pcm, np.float32)
        self._stream.pcm = self._pcm.ctypes.data
        self._stream.given = pcm.size
        self._count = whole // self._stream.packet_samples

    def take(self) -> tuple[bytes, ...]:
        """Give the packets of the block that was last encoded. Raises `OpusError` where libopus refused it."""
        self._pcm = None
        sizes = [self._codec.check(size) for size in self._sizes[: self._count]]
        found = memoryview(self._packets)
        return tuple(bytes(found[at * _PACKET_BYTES :][:size]) for at, size in enumerate(sizes))


@functools.cache
def find_libopus() -> Libopus | None:
    """Load libopus and the compiled call, or say in the log why not. The first time on a machine this compiles."""
    try:
        return Libopus(_path())
    except (BuildError, OSError, AttributeError) as problem:
        log.warning("Opus is made by PyAV, one row after the other: %s", problem)
    return None


def _path() -> Path:
    """Where a wheel of PyAV keeps its libopus: beside the package, in it on macOS."""
    found = importlib.util.find_spec("av")
    folder = Path(found.origin).parent if found and found.origin else Path()
    for place in (folder.parent / "av.libs", folder / ".dylibs"):
        for path in sorted(place.glob("*opus[-.]*")):
            return path
    raise FileNotFoundError(f"PyAV in {folder} ships no libopus of its own")
