"""Stands in for the `sounddevice` package: a microphone that is a WAV file, loudspeakers that are another.

Only what `moshi.client` uses, with sounddevice's own meaning: callbacks run on a thread of the stream, with blocks
of `blocksize` samples, from `__enter__` to `__exit__`. At its end the microphone's file begins again.
"""

import threading
import time
import types
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Callback = Callable[[NDArray[np.float32], int, Any, Any], None]
PERIOD_S = 0.02
"""Four times real time."""


class _Stream:
    def __init__(self, *, samplerate: float, channels: int, blocksize: int, callback: Callback) -> None:
        self._rate, self._channels, self._blocksize, self._callback = int(samplerate), channels, blocksize, callback
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S) and self._block():
            pass

    def _block(self) -> bool:
        raise NotImplementedError


def module(microphone: Path, loudspeakers: Path) -> types.ModuleType:
    """Make a module to put into `sys.modules` as `sounddevice`."""

    class InputStream(_Stream):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            with wave.open(str(microphone)) as file:
                assert (file.getframerate(), file.getsampwidth()) == (self._rate, 2)
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            self._sound = (samples / 32768).astype(np.float32)

        def _block(self) -> bool:
            block, self._sound = self._sound[: self._blocksize], np.roll(self._sound, -self._blocksize)
            self._callback(block[:, None], self._blocksize, time.monotonic(), None)
            return True

    class OutputStream(_Stream):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._sound: list[NDArray[np.float32]] = []

        def _block(self) -> bool:
            block = np.full((self._blocksize, self._channels), np.nan, np.float32)
            self._callback(block, self._blocksize, time.monotonic(), None)
            self._sound.append(block[:, 0].copy())
            return True

        def __exit__(self, *_: object) -> None:
            super().__exit__()
            write_wav(loudspeakers, np.concatenate(self._sound), self._rate)

    stand_in = types.ModuleType("sounddevice")
    stand_in.__dict__.update(InputStream=InputStream, OutputStream=OutputStream)
    return stand_in


def write_wav(path: Path, sound: NDArray[np.float32], rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def read_wav(path: Path) -> NDArray[np.float32]:
    with wave.open(str(path)) as file:
        return (np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768).astype(np.float32)
