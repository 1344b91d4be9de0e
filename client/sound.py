"""Sound files in and out: any rate in, 80 ms frames of 24 kHz mono out; nothing here holds a whole file.

Shapes: a frame is float32 [FRAME_SIZE] in -1..1. This module knows nothing of sockets.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from client.errors import SoundFileError

__all__ = [
    "FRAME_S",
    "FRAME_SIZE",
    "SAMPLE_RATE_HZ",
    "CallWriter",
    "Channel",
    "Closing",
    "Pcm",
    "WavWriter",
    "read_frames",
]

SAMPLE_RATE_HZ = 24_000
FRAME_SIZE = 1_920
FRAME_S = FRAME_SIZE / SAMPLE_RATE_HZ
_BLOCK_S = 0.5

Pcm = npt.NDArray[np.float32]
Channel = Literal["mix", "left", "right"]


def read_frames(path: Path, *, channel: Channel = "mix", head_s: float = 0.0, tail_s: float = 0.0) -> Iterator[Pcm]:
    """Give `path` as float32 [FRAME_SIZE] at 24 kHz, with `head_s` and `tail_s` seconds of silence round it.

    The last frame is filled up with zeros. The file is opened at once and read as frames are asked for; both
    raise SoundFileError.
    """
    return _cut_into_frames(_silence(head_s), _resampled(_open(path), channel), _silence(tail_s))


def _cut_into_frames(head: Pcm, blocks: Iterator[Pcm], tail: Pcm) -> Iterator[Pcm]:
    cutter = _FrameCutter()
    for block in chain([head], blocks, [tail]):
        yield from cutter.cut(block)
    yield from cutter.rest()


def _silence(length_s: float) -> Pcm:
    return np.zeros(round(length_s * SAMPLE_RATE_HZ), np.float32)


def _resampled(file: soundfile.SoundFile, channel: Channel) -> Iterator[Pcm]:
    rate = file.samplerate
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
    try:
        with file:
            for block in file.blocks(round(rate * _BLOCK_S), dtype="float32", always_2d=True):
                yield resampler.resample_chunk(_one_channel(block, channel))
    except soundfile.LibsndfileError as error:
        raise SoundFileError(f"Cannot read {file.name} to its end ({error}): the file is damaged.") from error
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _open(path: Path) -> soundfile.SoundFile:
    if not path.exists():
        raise SoundFileError(f"Cannot read {path}: there is no such file.")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise SoundFileError(
            f"Cannot read {path} ({error}): expected a sound file such as WAV, FLAC or Ogg/Opus."
        ) from error


def _one_channel(block: Pcm, channel: Channel) -> Pcm:
    """float32 [samples, channels] -> [samples]; a mono file has its one channel on both sides."""
    if channel == "mix":
        return np.asarray(block.mean(axis=1), np.float32)
    column = 0 if channel == "left" else block.shape[1] - 1
    return np.ascontiguousarray(block[:, column])


class _FrameCutter:
    def __init__(self) -> None:
        self._left_over = np.zeros(0, np.float32)

    def cut(self, block: Pcm) -> Iterator[Pcm]:
        joined = np.concatenate([self._left_over, block])
        whole = len(joined) // FRAME_SIZE * FRAME_SIZE
        self._left_over = joined[whole:]
        yield from joined[:whole].reshape(-1, FRAME_SIZE)

    def rest(self) -> Iterator[Pcm]:
        if len(self._left_over):
            yield np.pad(self._left_over, (0, FRAME_SIZE - len(self._left_over)))


class Closing(ABC):
    """Something that is closed at the end of a block, however that ends."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WavWriter(Closing):
    """Writes 24 kHz 16-bit WAV block by block: float32 [samples] or [samples, channels]."""

    def __init__(self, path: Path, *, channels: int = 1) -> None:
        try:
            self._file = soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, channels, subtype="PCM_16", format="WAV")
        except (soundfile.LibsndfileError, OSError) as error:
            raise SoundFileError(
                f"Cannot write {path} ({error}): expected a path in a folder that exists and is writable."
            ) from error

    def write(self, pcm: Pcm) -> None:
        """Append `pcm`; what is louder than full scale is clipped."""
        self._file.write(np.clip(pcm, -1.0, 1.0))

    def close(self) -> None:
        """Finish the header and the file."""
        self._file.close()


class CallWriter(WavWriter):
    """The two-channel recording of a call: user on the left, model on the right.

    Both sides are appended in their own time; samples reach the file as soon as both sides have them, so no
    more is held in memory than one side is ahead of the other.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, channels=2)
        self._user: deque[Pcm] = deque()
        self._model: deque[Pcm] = deque()

    def user(self, pcm: Pcm) -> None:
        """Append float32 [samples] of the caller."""
        self._user.append(pcm)
        self._write_common()

    def model(self, pcm: Pcm) -> None:
        """Append float32 [samples] of the model."""
        self._model.append(pcm)
        self._write_common()

    def close(self) -> None:
        """Fill the shorter side with silence and finish the file."""
        missing = sum(map(len, self._user)) - sum(map(len, self._model))
        shorter = self._model if missing > 0 else self._user
        shorter.append(np.zeros(abs(missing), np.float32))
        self._write_common()
        super().close()

    def _write_common(self) -> None:
        while self._user and self._model:
            count = min(len(self._user[0]), len(self._model[0]))
            self.write(np.stack([_take(self._user, count), _take(self._model, count)], axis=1))


def _take(side: deque[Pcm], count: int) -> Pcm:
    block = side.popleft()
    if len(block) > count:
        side.appendleft(block[count:])
    return block[:count]
