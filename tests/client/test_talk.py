"""`duologue talk` as a person runs it: a process of its own in a real terminal, real sockets, files for a card."""

import asyncio
import builtins
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from client.__main__ import build_parser
from client.call_state import CallState, Connection
from client.local_server import free_port, is_ready, local_server
from client.screen import PlainScreen
from tests.client.signals import speechlike, tone, write_wav
from tests.client.stage import FRAME, Script, Stage, silence, staged
from tests.client.terminal import PROGRAM, Terminal, in_terminal

LONG_S = 60
MAKES_UP_FOR_STOPS = ("-c", """
from client import __main__, microphone, sound_card
sound_card._LATE_S = microphone._PATIENCE_S = 1e9
microphone._MOST_WAITING = 1000
__main__.main()
""")  # fmt: skip
"""The program with a card that plays and hears everything, later, where a busy machine would make it skip."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder in which everything would lie that the client writes unasked."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def environment(home: Path) -> dict[str, str]:
    names = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR")
    return dict.fromkeys(names, str(home)) | {"PYTHONDONTWRITEBYTECODE": "1"}


def files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def microphone(tmp_path: Path) -> Path:
    """A minute in which somebody hums."""
    return write_wav(tmp_path / "microphone.wav", tone(LONG_S * 24000, hz=300.0, level=0.2))


def talk(url: str, microphone: Path, *more: str | Path) -> list[str | Path]:
    loudspeakers = microphone.with_name("loudspeakers.wav")
    return ["talk", "--url", url, "--input", microphone, "--output", loudspeakers, *more]


class Model:
    """A scripted server: says words and sound, and keeps what the client tells and sends."""

    def __init__(self) -> None:
        self.levels: list[float] = []
        self.notes: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.code: int | None = None

    async def script(self, stage: Stage) -> None:
        self.paths.append(stage.path)
        await stage.ready(id="one", adapter="adapter-7", consent={"keep": False, "train": False})
        for word in ("The", "moon", "is", "round."):
            await stage.send(2, f" {word}".encode())
        await stage.note({"type": "signal", "kind": "barge_in", "t": 65.0, "confidence": 0.9, "id": 1})
        await stage.note({"type": "stats", "lag_ms": 240, "dropped_ms": 0, "skipped_ms": 160})
        try:
            while True:
                message = await stage._socket.recv()
                assert isinstance(message, bytes)
                if message[0] == 4:
                    self.notes.append(json.loads(message[1:]))
                if message[0] == 1:
                    pcm = np.asarray(stage._decoder.append_bytes(message[1:]), np.float32)
                    self.levels.append(float(np.sqrt(np.square(pcm).mean())) if len(pcm) else 0.0)
                    await stage.speak(speechlike(FRAME, seed=len(self.levels)))
        finally:
            self.code = stage._socket.close_code


def lost_ms(text: str) -> int:
    """What the screen says: the server's losses, and what the client dropped itself where this machine stood still."""
    found = re.search(r"lost (\d+) ms", text)
    return int(found[1]) if found else 0


async def in_thread(use: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(use, *arguments)


async def test_a_call_on_the_screen_from_the_first_word_to_ctrl_c(home: Path, microphone: Path) -> None:
    model = Model()

    def person(terminal: Terminal) -> None:
        terminal.until("The moon is round.")
        terminal.until(lambda text: "connected" in text and "adapter adapter-7" in text and "not kept" in text)
        terminal.until("01:05 barge in")
        terminal.until(lambda text: "lag 240 ms" in text and lost_ms(text) >= 160)
        terminal.until(lambda text: "of them the model's" in text)
        terminal.until(lambda text: all(f"-{level}" in text for level in (17, 20)))
        terminal.press(" ")
        terminal.until("MUTED")
        model.levels.clear()
        while len(model.levels) < 8:
            terminal.look()
        assert max(model.levels[3:]) < 0.01, "nothing of the microphone reaches the server"
        terminal.press("m")
        terminal.until(lambda text: "MUTED" not in text)
        while model.levels[-1] < 0.05:
            terminal.look()
        terminal.press("+")
        terminal.until("You said: good.")
        terminal.press("-")
        terminal.until("You said: not good.")
        terminal.press("\x03")
        assert terminal.end() == 0
        assert b"\x1b[?1049l" in terminal.written, "the screen that was there before is back"
        assert terminal.attributes == terminal.attributes_before
        assert "call over after 00:" in terminal.text
        assert "Traceback" not in terminal.text

    async with staged(model.script) as url:
        arguments = talk(url, microphone, "--consent", "none", "--echo-cancellation", "off")
        with in_terminal(arguments, environment=environment(home)) as terminal:
            await in_thread(person, terminal)
    assert model.code == 1000, "a farewell in good order"
    assert [note["value"] for note in model.notes if note["type"] == "feedback"] == ["up", "down"]
    assert any(note["type"] == "playback" and note["played_ms"] > 0 for note in model.notes)
    assert not files(home), "nothing was asked, so nothing is remembered"


async def test_consent_is_asked_once_in_the_terminal(home: Path, microphone: Path) -> None:
    model = Model()

    def first(terminal: Terminal) -> None:
        terminal.until("May it keep your conversations? [y/N]")
        assert not model.paths, "nobody is called before the answer"
        terminal.press("y\n")
        terminal.until("May it train on them? [y/N]")
        terminal.press("\n")
        terminal.until("The moon is round.")
        terminal.press("q")
        assert terminal.end() == 0

    def second(terminal: Terminal) -> None:
        terminal.until("The moon is round.")
        assert b"y/N" not in terminal.written
        terminal.press("q")
        assert terminal.end() == 0

    async with staged(model.script) as url:
        for person in (first, second):
            with in_terminal(talk(url, microphone), environment=environment(home)) as terminal:
                await in_thread(person, terminal)
    assert model.paths == ["/api/chat?consent=keep"] * 2
    assert [path.name for path in files(home)] == ["consent.json"]


def run(arguments: list[str | Path], home: Path, program: Sequence[str] = PROGRAM) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program, *map(str, arguments)]
    settings = os.environ | environment(home)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, env=settings, stdin=subprocess.DEVNULL
    )


async def test_without_a_terminal_it_talks_until_the_file_is_through(home: Path, tmp_path: Path) -> None:
    """And prints states, but no word of what is said: what standard output goes to may be a file."""
    model = Model()
    question = write_wav(tmp_path / "question.wav", tone(24000, level=0.2))
    async with staged(model.script) as url:
        arguments = talk(url, question, "--record", tmp_path / "call.wav")
        done = await in_thread(run, arguments, home, MAKES_UP_FOR_STOPS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "connected" in done.stderr
    assert "moon" not in done.stderr
    assert "this call was not kept by the server" in done.stderr
    heard, _ = soundfile.read(question.with_name("loudspeakers.wav"), dtype="float32")
    call, rate = soundfile.read(tmp_path / "call.wav", dtype="float32")
    assert rate == 24000
    assert call.shape[0] == pytest.approx(len(heard), abs=4800)
    for side in call.T:
        assert np.abs(side).max() > 0.05, "both sides are in it"
    assert np.abs(heard).max() > 0.05


async def mute_server(stage: Stage) -> None:
    """The bare protocol: a handshake and sound, no metadata, no words; unknown messages are not answered."""
    await stage.ready()
    while True:
        await stage.hear()
        await stage.speak(silence())


async def refuse(stage: Stage) -> None:
    await stage.send(5, b"got text_temperature = '99'; expected 0 for greedy")
    await stage.close(4400)


@pytest.mark.parametrize(
    ("script", "code", "sentence"),
    [(mute_server, 0, "call over"), (refuse, 5, "expected 0 for greedy")],
)
async def test_bare_servers_and_refusals(home: Path, tmp_path: Path, script: Script, code: int, sentence: str) -> None:
    question = write_wav(tmp_path / "question.wav", tone(2400))
    async with staged(script) as url:
        done = await in_thread(run, talk(url, question), home)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--input", "nowhere.wav"], 2, "nowhere.wav: there is no such file"),
        (["--input", "{microphone}", "--output", "nowhere/heard.wav"], 2, "nowhere/heard.wav"),
        (["--input", "{microphone}", "--record", "nowhere/call.wav"], 2, "nowhere/call.wav"),
        (["--input", "{microphone}", "--token-file", "nowhere.txt"], 2, "nowhere.txt"),
        (["--input", "{microphone}"], 3, "duologue-server"),
        (["--input", "{microphone}", "--consent", "perhaps"], 2, "invalid choice"),
    ],
)
def test_mistakes_end_with_their_code_and_a_sentence(
    home: Path, microphone: Path, arguments: list[str], code: int, sentence: str
) -> None:
    filled = [word.format(microphone=microphone) for word in arguments]
    done = run(["talk", "--url", f"ws://127.0.0.1:{free_port()}", *filled], home)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_without_portaudio_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str, *arguments: Any) -> Any:
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
        return importing(name, *arguments)

    importing = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    arguments = build_parser().parse_args(["talk", "--consent", "none"])
    assert arguments.run(arguments) == 8
    assert "apt install libportaudio2" in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_a_server_that_is_killed_and_started_again_in_the_middle_of_a_call(
    home: Path, microphone: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    port = free_port()
    server = [sys.executable, "-m", "server", "--checkpoint", str(tiny_folder), "--slots", "1", "--port", str(port)]
    url = f"ws://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("wb") as log:
        first = subprocess.Popen(server, stderr=log)
        second = None
        try:
            wait_until_ready(port)
            with in_terminal(talk(url, microphone, "--consent", "none"), environment=environment(home)) as terminal:
                terminal.until(lambda text: "of them the model's" in text)
                first.kill()
                terminal.until("connection lost")
                second = subprocess.Popen(server, stderr=log)
                terminal.until("this is a new one")
                terminal.until(lambda text: "connected" in text and "1x called again" in text)
                terminal.press("q")
                assert terminal.end() == 0
                assert "called again 1 times" in terminal.text
        finally:
            for process in filter(None, (first, second)):
                process.kill()
                process.wait()


def wait_until_ready(port: int) -> None:
    while not is_ready(f"http://127.0.0.1:{port}/readyz"):
        time.sleep(0.1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("grace_s", "sentence"), [("30", "goes on where it was"), ("0.5", "this is a new one")])
def test_a_program_that_is_stopped_for_a_while_and_goes_on(
    home: Path,
    microphone: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grace_s: str,
    sentence: str,
) -> None:
    """As when the lid is shut: the clock jumps, the server has given up on the socket, perhaps on the call."""
    for name, value in (("HEARTBEAT_S", "0.5"), ("RESUME_GRACE_S", grace_s)):
        monkeypatch.setenv(f"DUOLOGUE_{name}", value)
    with local_server(str(tiny_folder), log=tmp_path / "server.log", flags=["--slots", "1"]) as url:
        monkeypatch.undo()
        with in_terminal(talk(url, microphone, "--consent", "none"), environment=environment(home)) as terminal:
            terminal.until(lambda text: "of them the model's" in text)
            terminal.process.send_signal(signal.SIGSTOP)
            terminal.look(6.5)
            terminal.process.send_signal(signal.SIGCONT)
            terminal.until(sentence)
            terminal.until(lambda text: "connected" in text)
            terminal.press("q")
            assert terminal.end() == 0


@pytest.mark.mini
@pytest.mark.timeout(300)
def test_no_word_of_a_call_is_written_anywhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs at their most talkative, metrics, the server's data, the client's files: of question and answer nothing."""
    monkeypatch.setenv("DUOLOGUE_LOG_LEVEL", "debug")
    for box in ("DUOLOGUE_INBOX_MS", "DUOLOGUE_OUTBOX_MS"):
        monkeypatch.setenv(box, "60000")  # the question must be heard whole
    question = Path(__file__).parents[1] / "assets" / "speech" / "demo_2.opus"
    log, data = tmp_path / "server.log", tmp_path / "data"
    with local_server("mini", log=log, flags=["--slots", "1", "--data-dir", str(data)]) as url:
        arguments: list[str | Path] = ["talk", "--url", url, "--input", question, "--consent", "none", "--greedy"]
        with in_terminal(arguments, environment=environment(home), folder=home, program=MAKES_UP_FOR_STOPS) as terminal:
            terminal.until(lambda text: "Paris" in text)
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            metrics = direct.open(f"http{url[2:]}/metrics").read()
            assert terminal.end() == 0
        metrics += direct.open(f"http{url[2:]}/metrics").read()
    assert b"Paris" in terminal.written, "it was said, and shown to the one who asked"
    written = {"metrics": metrics}
    for path in (log, *files(data, home)):
        written[str(path)] = path.read_bytes()
    assert b"has slot" in written[str(log)], "the log was written"
    assert len(metrics) > 1000
    for name, content in written.items():
        for word in (b"paris", b"france", b"capital"):
            assert word not in content.lower(), f"{word!r} in {name}"


def test_the_plain_screen_says_everything_once() -> None:
    said: list[str] = []
    state = CallState()
    screen = PlainScreen(state, said.append)
    state.add_words(" secret")
    for connection in (Connection.CALLING, Connection.TALKING, Connection.TALKING):
        state.connection = connection
        screen.refresh()
    state.tell("The sound card is back: USB.")
    screen.refresh()
    screen.refresh()
    assert said == ["calling", "connected", "The sound card is back: USB."]


def test_flags() -> None:
    """Frozen: scripts depend on them."""
    arguments = build_parser().parse_args(["talk"])
    assert {name: value for name, value in vars(arguments).items() if name not in ("run", "url")} == {
        "token": None,
        "token_file": None,
        "ca": None,
        "insecure": False,
        "input": None,
        "output": None,
        "list_devices": False,
        "test_devices": False,
        "echo_cancellation": "on",
        "record": None,
        "consent": None,
        "muted": False,
        "greedy": False,
        "seed": None,
        "text_temperature": None,
        "text_topk": None,
        "audio_temperature": None,
        "audio_topk": None,
        "pad_mult": None,
        "repetition_penalty": None,
        "repetition_penalty_context": None,
    }
