"""Devices without a sound card: a stand-in for `sounddevice` with its own meaning, and the real one as it is here."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import devices as devices_module
from client import talk_devices
from client.devices import PortAudioCard, devices
from client.errors import DeviceError
from client.sound_card import BLOCK, FileCard
from client.talk_devices import list_devices, try_devices
from tests.client.signals import tone, write_wav


class PortAudioError(Exception):
    pass


class Stream:
    """What a test drives in PortAudio's place."""

    def __init__(self, side: str, options: dict[str, Any]) -> None:
        self.side, self.options = side, options
        self.started = self.closed = False
        self.latency = 0.0125

    def start(self) -> None:
        self.started = True

    def close(self, *, ignore_errors: bool) -> None:
        assert ignore_errors
        self.closed = True
        self.options["finished_callback"]()

    def feed(self, block: np.ndarray) -> None:
        self.options["callback"](block, len(block), None, None)


class SoundDevice(types.ModuleType):
    """`sounddevice`, with two microphones of which one knows only 44.1 kHz."""

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.PortAudioError = PortAudioError
        self.found = [
            {"index": 0, "name": "Built-in Mic", "hostapi": 0, "max_input_channels": 1, "max_output_channels": 0},
            {"index": 1, "name": "USB Mic", "hostapi": 0, "max_input_channels": 1, "max_output_channels": 0},
            {"index": 2, "name": "Speakers", "hostapi": 0, "max_input_channels": 0, "max_output_channels": 2},
        ]
        for device in self.found:
            device["default_samplerate"] = 44100.0
        self.default = types.SimpleNamespace(device=[0, 2])
        self.streams: list[Stream] = []
        self.looked = 0

    def query_hostapis(self) -> Any:
        return ({"name": "ALSA"},)

    def query_devices(self, wanted: Any = None, kind: str | None = None) -> Any:
        if kind is None:
            return tuple(self.found)
        key = f"max_{kind}_channels"
        fitting = [each for each in self.found if each[key]]
        if wanted is None:
            wanted = self.default.device[kind == "output"]
        meant = [each for each in fitting if wanted in (each["index"],) or str(wanted) in str(each["name"])]
        if len(meant) != 1:
            raise ValueError(f"No {kind} device matching {wanted!r}")
        return meant[0]

    def check_input_settings(self, *, device: int, samplerate: int, **_: Any) -> None:
        if device == 1 and samplerate != 44100:
            raise PortAudioError("Invalid sample rate")

    def check_output_settings(self, **_: Any) -> None:
        pass

    def InputStream(self, **options: Any) -> Stream:
        self.streams.append(Stream("input", options))
        return self.streams[-1]

    def OutputStream(self, **options: Any) -> Stream:
        self.streams.append(Stream("output", options))
        return self.streams[-1]

    def _terminate(self) -> None:
        self.looked += 1

    def _initialize(self) -> None:
        pass


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SoundDevice:
    stand_in = SoundDevice()
    monkeypatch.setitem(sys.modules, "sounddevice", stand_in)
    return stand_in


def test_devices_are_listed_with_the_systems_choice(library: SoundDevice, capsys: pytest.CaptureFixture[str]) -> None:
    assert [device.number for device in devices() if device.is_default] == [0, 2]
    assert list_devices(print) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "*  0  Built-in Mic (ALSA; 1 in; 44100 Hz)"
    assert lines[1].startswith("   1  USB Mic")
    assert "2 out" in lines[2]


def test_no_device_at_all_is_said(library: SoundDevice) -> None:
    library.found = []
    with pytest.raises(DeviceError, match=r"no sound device.*--input question\.wav"):
        list_devices(print)


@pytest.mark.parametrize(("name", "index"), [(None, 0), ("0", 0), ("USB", 1)])
def test_a_device_is_meant_by_number_by_name_or_by_default(library: SoundDevice, name: str | None, index: int) -> None:
    card = PortAudioCard(name)
    card.open(lambda _: None, lambda count: np.zeros(count, np.float32))
    microphone, loudspeakers = library.streams
    assert (microphone.options["device"], loudspeakers.options["device"]) == (index, 2)
    assert microphone.started
    assert loudspeakers.started
    assert card.output_s == 0.0125
    assert library.looked == 1, "or a device plugged in later is never seen"
    card.close()
    assert microphone.closed
    assert not card.problem, "it was closed, it did not end"


def test_a_card_of_another_rate_is_resampled(library: SoundDevice) -> None:
    heard: list[np.ndarray] = []
    card = PortAudioCard("USB")
    card.open(heard.append, lambda count: np.full(count, 0.25, np.float32))
    microphone, loudspeakers = library.streams
    assert microphone.options["samplerate"] == 44100
    assert microphone.options["blocksize"] == 882
    for block in tone(44100, rate=44100, hz=440.0).reshape(-1, 882, 1):
        microphone.feed(block)
    sound = np.concatenate(heard)
    assert len(sound) == pytest.approx(24000, abs=600)
    spectrum = np.abs(np.fft.rfft(sound[2400:21600]))
    assert np.fft.rfftfreq(19200, 1 / 24000)[spectrum.argmax()] == pytest.approx(440, abs=2)
    block = np.zeros((BLOCK, 2), np.float32)
    loudspeakers.feed(block)
    np.testing.assert_array_equal(block, 0.25)


def test_loudspeakers_of_another_rate_get_as_many_samples_as_they_ask_for(
    library: SoundDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        if options["samplerate"] == 24000:
            raise PortAudioError("Invalid sample rate")

    monkeypatch.setattr(library, "check_output_settings", refuse)
    card = PortAudioCard()
    source = iter(np.split(tone(48000), 100))
    card.open(lambda _: None, lambda _count: next(source))
    played = []
    for _ in range(50):
        block = np.full((882, 2), np.nan, np.float32)
        library.streams[1].feed(block)
        played.append(block[:, 0])
    sound = np.concatenate(played)
    assert np.isfinite(sound).all()
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.fft.rfftfreq(len(sound), 1 / 44100)[spectrum.argmax()] == pytest.approx(440, abs=2)


def test_a_stream_that_ends_by_itself_is_a_problem(library: SoundDevice) -> None:
    card = PortAudioCard()
    card.open(lambda _: None, lambda count: np.zeros(count, np.float32))
    library.streams[0].options["finished_callback"]()
    assert card.problem == "Built-in Mic has stopped: was it unplugged?"


@pytest.mark.parametrize(("side", "name"), [("microphone", "nothing"), ("loudspeakers", "9")])
def test_a_device_that_is_not_there_is_said_with_what_to_do(library: SoundDevice, side: str, name: str) -> None:
    card = PortAudioCard(name) if side == "microphone" else PortAudioCard(None, name)
    with pytest.raises(DeviceError, match=f"{side} '{name}'.*--list-devices") as caught:
        card.open(lambda _: None, lambda count: np.zeros(count, np.float32))
    assert caught.value.exit_code == 8
    assert all(stream.closed for stream in library.streams), "nothing is left open"


def hide_sounddevice(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def find(name: str, *_: object, **__: object) -> Any:
        raise problem

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [types.SimpleNamespace(find_spec=find)])


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (OSError("PortAudio library not found"), "apt install libportaudio2"),
        (ModuleNotFoundError("No module named 'sounddevice'"), "pip install sounddevice"),
    ],
)
def test_a_missing_library_is_said_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, problem: Exception, sentence: str
) -> None:
    with monkeypatch.context() as hidden, pytest.raises(DeviceError, match=sentence):
        hide_sounddevice(hidden, problem)
        PortAudioCard()


def test_without_a_sound_card_the_command_says_so_and_nothing_more() -> None:
    """The real library on this machine: whatever it finds, no traceback."""
    command = [sys.executable, "-m", "client", "talk", "--list-devices"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 8)
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) == ("Choose with --input" in done.stdout)


@pytest.mark.parametrize(
    ("level", "sentence"), [(0.1, "works"), (0.0, "nothing but silence"), (0.9, "too loud"), (0.003, "very quiet")]
)
def test_the_microphone_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], level: float, sentence: str
) -> None:
    card = FileCard(write_wav(tmp_path / "in.wav", tone(48000, level=level)), tmp_path / "out.wav", speed=8)
    assert try_devices(card, print, test_s=0.15) == 0
    card.finish()
    lines = capsys.readouterr().out.splitlines()
    assert "dB" in lines[1]
    assert sentence in lines[-1]


def test_a_card_that_stops_during_the_test_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FileCard(None, speed=8)
    opened: Callable[..., None] = card.open

    def open_and_lose(*arguments: Any) -> None:
        opened(*arguments)
        card.unplug("the cable was pulled")

    monkeypatch.setattr(card, "open", open_and_lose)
    monkeypatch.setattr(talk_devices, "_SHOW_EVERY_S", 0.02)
    with pytest.raises(DeviceError, match="the cable was pulled"):
        try_devices(card, lambda _: None, test_s=0.05)


def test_nothing_of_portaudio_is_loaded_until_it_is_needed() -> None:
    assert "sounddevice" not in vars(devices_module)
    code = "import sys, client.__main__; print('sounddevice' in sys.modules, 'pywebrtc_audio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
