"""`duologue talk --list-devices` and `--test-devices`: what there is, and whether it hears and sounds."""

import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from client.devices import Device, devices
from client.errors import DeviceError
from client.levels import SILENT_DBFS, dbfs
from client.sound import SAMPLE_RATE_HZ, Pcm
from client.sound_card import SoundCard

__all__ = ["list_devices", "try_devices"]

_NONE: Final = (
    "PortAudio finds no sound device on this machine. Plug one in, or call with sound files: "
    "`duologue talk --input question.wav --output answer.wav`."
)
_TEST_S: Final = 5.0
_SHOW_EVERY_S: Final = 0.5
_TONE_HZ: Final = 440.0
_TONE: Final = 0.1
_QUIET_DBFS: Final = -45.0
_LOUD_DBFS: Final = -3.0
_BAR: Final = 40


def list_devices(say: Callable[[str], None]) -> int:
    """Print every device. Raises DeviceError when there is none, or no PortAudio. Returns the exit code."""
    found = devices()
    if not found:
        raise DeviceError(_NONE)
    for device in found:
        say(_line(device))
    say("Choose with --input and --output: a number or a part of a name. * is the system's choice.")
    return 0


def try_devices(card: SoundCard, say: Callable[[str], None], *, test_s: float = _TEST_S) -> int:
    """Play a soft tone, show the microphone's level, and judge it. Raises DeviceError. Returns the exit code."""
    trial = _Trial()
    card.open(trial.heard, trial.wanted)
    try:
        say(f"{card.name}: you should hear a tone. Say something for {test_s:.0f} seconds.")
        ends_at = time.monotonic() + test_s
        while time.monotonic() < ends_at and not card.over:
            time.sleep(min(_SHOW_EVERY_S, test_s))
            level = trial.level()
            say(f"{level:6.0f} dB {'#' * round(max(0.0, 1 + level / 60) * _BAR)}")
        problem = card.problem
    finally:
        card.close()
    if problem:
        raise DeviceError(problem)
    say(trial.verdict())
    return 0


class _Trial:
    """What one test heard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: list[Pcm] = []
        self._loudest = SILENT_DBFS
        self._peak = 0.0
        self._played = 0

    def heard(self, block: Pcm) -> None:
        with self._lock:
            self._recent.append(block)

    def wanted(self, count: int) -> Pcm:
        at = np.arange(self._played, self._played + count) / SAMPLE_RATE_HZ
        self._played += count
        return (_TONE * np.sin(2 * np.pi * _TONE_HZ * at)).astype(np.float32)

    def level(self) -> float:
        """RMS since the last time, in dBFS."""
        with self._lock:
            recent, self._recent = self._recent, []
        pcm = np.concatenate(recent) if recent else np.zeros(0, np.float32)
        self._peak = max(self._peak, float(np.abs(pcm).max(initial=0.0)))
        self._loudest = max(self._loudest, dbfs(pcm))
        return dbfs(pcm)

    def verdict(self) -> str:
        if self._loudest <= SILENT_DBFS:
            return "The microphone gave nothing but silence: is it muted, or does the system forbid its use?"
        if self._peak >= 10 ** (_LOUD_DBFS / 20):
            return f"The microphone is too loud (peak {20 * np.log10(self._peak):.0f} dBFS): turn it down."
        if self._loudest < _QUIET_DBFS:
            return f"The microphone is very quiet ({self._loudest:.0f} dBFS): turn it up, or come nearer."
        return f"The microphone works ({self._loudest:.0f} dBFS)."


def _line(device: Device) -> str:
    sides = [f"{count} {word}" for count, word in ((device.inputs, "in"), (device.outputs, "out")) if count]
    star = "*" if device.is_default else " "
    return f"{star}{device.number:3d}  {device.name} ({device.system}; {', '.join(sides)}; {device.rate_hz} Hz)"
