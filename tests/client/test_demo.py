"""The demo from end to end: with a model that knows the answers, and with one that knows nothing."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from client import demo
from client.call import CallReport, TimedPiece
from client.demo import Asked, Question, join_pieces, load_questions, main
from client.errors import SoundFileError
from client.local_server import local_server
from client.sound import read_frames
from client.timeline import Word
from tests.client.stage import FRAME, Samples, Stage, silence, staged

CAPITAL = {"file": "demo_2.opus", "text": "What is the capital of France?", "category": "capitals"}
ENTRY = CAPITAL | {"voice": "anybody", "heldout": False, "demo": True}
REPORT = CallReport(
    url="",
    session=None,
    adapter=None,
    text="",
    pieces=[],
    turns=[],
    first_audio_delay_s=None,
    delay_ms=None,
    speed=1.0,
    duration_s=0.0,
    frames_sent=0,
    frames_received=0,
    dropped_ms=0,
    skipped_ms=0,
    max_lag_ms=0,
)


def assets(folder: Path, *expected: str) -> Path:
    """A folder in which the same question is asked as often as there are expected answers."""
    (folder / "demo_2.opus").write_bytes((demo.ASSETS / "demo_2.opus").read_bytes())
    (folder / "index.json").write_bytes(msgspec.json.encode([ENTRY | {"expected": text} for text in expected]))
    return folder


@contextmanager
def parrot(*_: Any, **__: Any) -> Iterator[str]:
    """In the place of our server: one that waits for the user's end and says the question back, by text and sound."""
    question = list(read_frames(demo.ASSETS / "demo_2.opus"))

    async def script(stage: Stage) -> None:
        await stage.ready()
        for n in range(400):
            heard = await stage.hear()
            await stage.speak(parroted(question, n))
            if n == len(question) + 12:
                for piece in (" What", " is", " the", " cap", "ital", " of", " France?"):
                    await stage.send(2, piece.encode())
            assert len(heard) == FRAME

    with in_thread(script) as url:
        yield url


def parroted(question: list[Samples], n: int) -> Samples:
    first = len(question) + 12
    return question[n - first] if first <= n < first + len(question) else silence()


@contextmanager
def in_thread(script: Any) -> Iterator[str]:
    """Serve a script while the test's own thread runs its own event loop."""
    loop, address, end = asyncio.new_event_loop(), [], asyncio.Event()
    listening = threading.Event()

    async def serve() -> None:
        async with staged(script) as url:
            address.append(url)
            listening.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    listening.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


def run(folder: Path, *arguments: str) -> tuple[int, list[Asked]]:
    with pytest.raises(SystemExit) as end:
        main(["--out", str(folder / "demo"), "--no-learning", *arguments])
    result = folder / "demo" / "result.json"
    asked = msgspec.json.decode(result.read_bytes(), type=list[Asked]) if result.exists() else []
    assert isinstance(end.value.code, int)
    return end.value.code, asked


def test_right_answers_are_recognised_by_text_and_by_ear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "local_server", parrot)
    code, (asked,) = run(tmp_path, "--assets", str(assets(tmp_path, "What is the capital of France?")))
    assert code == 0
    assert asked.right
    assert asked.confirmed
    assert asked.report.turns[0].latency_s == pytest.approx(13 * 0.08 - 0.5, abs=0.15)
    printed = capsys.readouterr().out
    assert "1 of 1 answers are right; the recogniser understood 1 of them" in printed
    assert "duologue-server --checkpoint mini" in printed.splitlines()[-1]
    stereo, _ = soundfile.read(tmp_path / "demo" / "call_1.wav")
    assert np.abs(stereo).max(axis=0).min() > 0.1, "both sides speak"
    assert_is_a_picture(tmp_path / "demo" / "timeline.png")


@pytest.mark.parametrize(("right", "code"), [(5, 0), (4, 0), (3, 1), (0, 1)])
def test_four_of_five_are_enough_and_three_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: int, code: int
) -> None:
    question = msgspec.convert(ENTRY | {"expected": "Paris."}, Question)
    answers = [Asked(question=question, report=REPORT, heard="", right=n < right, confirmed=False) for n in range(5)]
    monkeypatch.setattr(demo, "_demonstrate", lambda _: answers)
    assert run(tmp_path)[0] == code


def test_a_model_that_knows_nothing_fails_the_demo(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own server with random weights: everything runs, the recordings are there, and the exit code is 1."""
    monkeypatch.setattr(demo, "_LONGEST_WAIT_S", 2.5)
    for box in ("DUOLOGUE_INBOX_MS", "DUOLOGUE_OUTBOX_MS"):
        monkeypatch.setenv(box, "60000")  # nothing is lost on a busy machine
    folder = assets(tmp_path, "The capital of France is Paris.")
    code, (asked,) = run(tmp_path, "--assets", str(folder), "--checkpoint", str(tiny_folder))
    assert code == 1
    assert not asked.right
    assert not asked.confirmed
    assert asked.report.frames_received > 40
    assert (asked.report.dropped_ms, asked.report.skipped_ms) == (0, 0)
    assert "expected:          The capital of France is Paris." in capsys.readouterr().out
    assert_is_a_picture(tmp_path / "demo" / "timeline.png")


def assert_is_a_picture(path: Path) -> None:
    """A PNG in which both sides' colours are seen."""
    from matplotlib.image import imread

    pixels = (imread(path)[:, :, :3] * 255).astype(int)
    for colour in ((47, 109, 181), (217, 98, 43)):
        assert (np.abs(pixels - colour).max(axis=2) < 32).sum() > 200


def test_a_server_that_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(tmp_path, "--checkpoint", str(tmp_path / "nothing"))
    assert code == 3
    problem = capsys.readouterr().err
    assert "The server ended with code 1" in problem
    assert "nothing" in problem


def test_our_server_is_gone_after_its_block(tmp_path: Path, tiny_folder: Path) -> None:
    with local_server(str(tiny_folder), log=tmp_path / "log") as url:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        socket.create_connection(address).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_five_questions_are_shipped_and_can_be_heard() -> None:
    questions = load_questions(demo.ASSETS)
    assert len(questions) == 5
    for question in questions:
        assert question.text
        assert question.expected
        assert np.abs(np.concatenate(list(read_frames(demo.ASSETS / question.file)))).max() > 0.05


@pytest.mark.parametrize("index", [None, b"[]", b"{}", b"[{]", msgspec.json.encode([ENTRY])])
def test_a_folder_without_questions_is_refused(tmp_path: Path, index: bytes | None) -> None:
    if index is not None:
        (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(SoundFileError, match=r"index\.json"):
        load_questions(tmp_path)


def test_pieces_join_into_words() -> None:
    pieces = [TimedPiece(text=text, t_s=n * 0.08) for n, text in enumerate(["I", " do", " n", "ot", " ", "know", "."])]
    assert join_pieces(pieces) == [
        Word(text="I", t_s=0.0),
        Word(text="do", t_s=0.08),
        Word(text="not", t_s=0.16),
        Word(text="know.", t_s=0.32),
    ]
