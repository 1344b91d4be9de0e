"""Real microphones and loudspeakers, by PortAudio: which there are, which is meant, and one call's streams.

Only this file imports `sounddevice`, and only when it is needed: the other commands work without PortAudio. It
knows devices and rates, no network and no buffers.
"""

import threading
from typing import Any, Final

import msgspec
import numpy as np
import soxr

from client.errors import DeviceError
from client.sound import SAMPLE_RATE_HZ, Pcm
from client.sound_card import BLOCK, Heard, Wanted

__all__ = ["Device", "PortAudioCard", "devices"]

_NO_PORTAUDIO: Final = (
    "PortAudio, which reaches microphones and loudspeakers, is not on this machine ({problem}). Install it "
    "(Debian and Ubuntu: `apt install libportaudio2`; Fedora: `dnf install portaudio`; macOS: `brew install "
    "portaudio`), or call with sound files: `duologue talk --input question.wav --output answer.wav`."
)
_NO_SOUNDDEVICE: Final = "The package `sounddevice` is not installed: `pip install sounddevice`."
_NOT_OPEN: Final = (
    "Cannot use the {side} {name!r} ({problem}). Is it plugged in, may this program use it, and does no other hold it? "
    "`duologue talk --list-devices` shows what there is; choose with --input and --output."
)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device as PortAudio knows it. `inputs` and `outputs` count channels."""

    number: int
    name: str
    system: str
    inputs: int
    outputs: int
    rate_hz: int
    is_default: bool


def devices() -> list[Device]:
    """What there is. Raises DeviceError when PortAudio is missing."""
    library = _library()
    systems = library.query_hostapis()
    defaults = set(library.default.device)
    return [
        Device(
            number=number,
            name=found["name"],
            system=systems[found["hostapi"]]["name"],
            inputs=found["max_input_channels"],
            outputs=found["max_output_channels"],
            rate_hz=round(found["default_samplerate"]),
            is_default=number in defaults,
        )
        for number, found in enumerate(library.query_devices())
    ]


class PortAudioCard:
    """A microphone and loudspeakers, each a stream of its own, which may be two different devices.

    A device is meant by its number, by a part of its name, or is the system's default when None. One that does not
    know 24 kHz runs at its own rate, and the sound is resampled here.
    """

    def __init__(self, microphone: str | None = None, loudspeakers: str | None = None) -> None:
        """Raises DeviceError when PortAudio is missing."""
        self._wanted_names = {"input": microphone, "output": loudspeakers}
        self._library = _library()
        self._streams: list[Any] = []
        self._names: list[str] = []
        self._problem = ""
        self._output_s = 0.0
        self._closing = threading.Event()

    @property
    def name(self) -> str:
        """The devices' names."""
        return " and ".join(self._names)

    @property
    def problem(self) -> str:
        """Why a stream has ended that was not closed."""
        return self._problem

    @property
    def output_s(self) -> float:
        """What PortAudio says of the loudspeakers' delay."""
        return self._output_s

    @property
    def over(self) -> bool:
        """Never."""
        return False

    def open(self, heard: Heard, wanted: Wanted) -> None:
        """Find the devices anew and start both streams. Raises DeviceError and leaves nothing open."""
        self._look_again()
        self._problem, self._names = "", []
        self._closing.clear()
        try:
            self._start("input", self._library.InputStream, lambda rate: _listening(heard, rate))
            self._output_s = self._start("output", self._library.OutputStream, lambda rate: _playing(wanted, rate))
        except DeviceError:
            self.close()
            raise

    def close(self) -> None:
        """Stop both streams."""
        self._closing.set()
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.close(ignore_errors=True)

    def _start(self, side: str, make: Any, callback_for: Any) -> float:
        found, rate = self._find(side)
        channels = 1 if side == "input" else min(2, found["max_output_channels"])
        self._names.append(found["name"])
        try:
            stream = make(
                device=found["index"],
                samplerate=rate,
                blocksize=round(BLOCK * rate / SAMPLE_RATE_HZ),
                channels=channels,
                dtype="float32",
                latency="low",
                callback=callback_for(rate),
                finished_callback=lambda: self._ended(found["name"]),
            )
            self._streams.append(stream)
            stream.start()
        except (self._library.PortAudioError, ValueError) as problem:
            raise _not_open(side, found["name"], problem) from problem
        return float(stream.latency)

    def _find(self, side: str) -> tuple[dict[str, Any], int]:
        """Give what PortAudio knows of the device that is meant, and the rate to run it at."""
        meant = self._wanted_names[side]
        number = int(meant) if meant is not None and meant.isdecimal() else meant
        try:
            found = dict(self._library.query_devices(number, side))
        except (self._library.PortAudioError, ValueError) as problem:
            raise _not_open(side, meant or "default device", problem) from problem
        check = getattr(self._library, f"check_{side}_settings")
        try:
            check(device=found["index"], channels=1, dtype="float32", samplerate=SAMPLE_RATE_HZ)
        except self._library.PortAudioError:
            return found, round(found["default_samplerate"])
        return found, SAMPLE_RATE_HZ

    def _ended(self, name: str) -> None:
        """Called by PortAudio when a stream has ended, for whatever reason."""
        if not self._closing.is_set():
            self._problem = f"{name} has stopped: was it unplugged?"

    def _look_again(self) -> None:
        """Make PortAudio see what was plugged in since it looked last; it offers no other way."""
        assert not self._streams, "a closed card"
        self._library._terminate()  # noqa: SLF001 - sounddevice's own advice for this
        self._library._initialize()  # noqa: SLF001


def _library() -> Any:
    try:
        import sounddevice  # noqa: PLC0415 - loads PortAudio, which need not be there
    except ImportError as problem:
        raise DeviceError(_NO_SOUNDDEVICE) from problem
    except OSError as problem:
        raise DeviceError(_NO_PORTAUDIO.format(problem=problem)) from problem
    return sounddevice


def _not_open(side: str, name: str, problem: Exception) -> DeviceError:
    word = "microphone" if side == "input" else "loudspeakers"
    return DeviceError(_NOT_OPEN.format(side=word, name=name, problem=problem))


def _listening(heard: Heard, rate: int) -> Any:
    """Make PortAudio's callback of a microphone, float32 [frames, 1]."""
    to_24k = _resampler(rate, SAMPLE_RATE_HZ)

    def callback(block: Pcm, _frames: int, _time: Any, _status: Any) -> None:
        heard(to_24k(block[:, 0].copy()))

    return callback


def _playing(wanted: Wanted, rate: int) -> Any:
    """Make PortAudio's callback of loudspeakers, float32 [frames, channels]: the same on all channels."""
    from_24k = _resampler(SAMPLE_RATE_HZ, rate)
    ready = np.zeros(0, np.float32)

    def callback(block: Pcm, frames: int, _time: Any, _status: Any) -> None:
        nonlocal ready
        while len(ready) < frames:
            ready = np.concatenate((ready, from_24k(wanted(BLOCK))))
        block[:] = ready[:frames, None]
        ready = ready[frames:]

    return callback


def _resampler(source_hz: int, target_hz: int) -> Any:
    """Make a function that resamples one block after the other, and gives what is ready: up to 20 ms late."""
    if source_hz == target_hz:
        return lambda pcm: pcm
    return soxr.ResampleStream(source_hz, target_hz, 1, dtype="float32", quality="LQ").resample_chunk
