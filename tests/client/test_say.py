"""`duologue say` as a user runs it: another process, a real server, real files."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from client import say as say_module
from client.__main__ import build_parser
from client.errors import ClientError
from client.link import open_link
from client.say import sampling_query
from client.sound import read_frames
from tests.client.signals import tone, write_wav
from tests.client.stage import Stage, staged

QUESTION = Path(__file__).parent.parent / "assets" / "speech" / "demo_2.opus"


def say(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client", "say", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def say_json(*arguments: str | Path) -> dict[str, Any]:
    done = say(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2)])
def test_a_file_goes_in_and_the_conversation_comes_out(
    server_url: str, tmp_path: Path, rate: int, channels: int
) -> None:
    sound = np.repeat(tone(rate * 2, rate=rate)[:, None], channels, axis=1)
    question = write_wav(tmp_path / "question.wav", sound, rate=rate)
    reply, call = tmp_path / "reply.wav", tmp_path / "call.wav"
    report = say_json(question, "--url", server_url, "--out", reply, "--stereo", call, "--tail", "1", "--seed", "1")

    assert (report["frames_sent"], report["frames_received"]) == (38, 37), (
        "the model is a frame behind, and all else is waited for"
    )
    assert (report["dropped_ms"], report["skipped_ms"], report["speed"]) == (0, 0, 1.0)
    assert report["delay_ms"]["p50"] >= 160, "a frame and the model's own"
    assert report["text"] == "".join(piece["text"] for piece in report["pieces"]).strip()
    assert report["turns"][0]["user"]["end_s"] == pytest.approx(2.0, abs=0.05)

    stereo, stereo_rate = soundfile.read(call, dtype="float32")
    answer, answer_rate = soundfile.read(reply, dtype="float32")
    assert stereo_rate == answer_rate == 24000
    assert stereo.shape == (38 * 1920, 2)
    np.testing.assert_allclose(stereo[:, 0], np.concatenate(list(read_frames(question, tail_s=1.0))), atol=1e-4)
    np.testing.assert_array_equal(stereo[: len(answer), 1], answer)
    assert np.abs(answer).max() > 0.01


def test_greedy_calls_are_equal_at_any_speed(server_url: str) -> None:
    arguments = (QUESTION, "--url", server_url, "--greedy", "--tail", "1", "--head", "0.3")
    slow, fast = say_json(*arguments), say_json(*arguments, "--speed", "6")
    assert slow["speed"] == 1.0
    assert fast["speed"] == 6.0
    assert slow["text"] == fast["text"] != ""
    assert slow["pieces"] == fast["pieces"]


def test_seeds_decide_the_call(server_url: str) -> None:
    arguments = (QUESTION, "--url", server_url, "--speed", "6", "--tail", "1")
    first, again, other = (say_json(*arguments, "--seed", seed)["text"] for seed in ("5", "5", "6"))
    assert first == again != other


def test_sentences_are_printed_without_json(server_url: str) -> None:
    done = say(QUESTION, "--url", server_url, "--greedy", "--tail", "0.5")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("model: ")
    assert lines[1].startswith("turn 1: user 0.0")
    assert "lost 0 ms of the reply, 0 ms of the question" in lines[2]
    assert lines[3].startswith("sound to sound: ")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([QUESTION, "--text-temperature", "99"], 5, "expected 0 for greedy"),
        (["nowhere.wav"], 2, "nowhere.wav"),
        ([QUESTION, "--out", "nowhere/reply.wav"], 2, "nowhere/reply.wav"),
        ([QUESTION, "--speed", "0"], 2, "expected a number above 0"),
        ([QUESTION, "--tail", "-1"], 2, "expected a number from 0"),
        ([QUESTION, "--token-file", "nowhere.txt"], 2, "nowhere.txt"),
        ([QUESTION, "--token-file", QUESTION], 2, "Cannot read the token"),
        ([], 2, "file"),
    ],
)
def test_mistakes_end_with_their_code_and_a_sentence(
    server_url: str, arguments: list[str | Path], code: int, sentence: str
) -> None:
    done = say(*arguments, "--url", server_url)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server(unused_tcp_port: int) -> None:
    done = say(QUESTION, "--url", f"ws://127.0.0.1:{unused_tcp_port}")
    assert done.returncode == 3
    assert "duologue-server" in done.stderr


async def test_a_server_that_takes_no_call_now_is_quoted() -> None:
    """Not every 4429 means that it is full."""

    async def script(stage: Stage) -> None:
        await stage.send(5, b"got a call while the model loads; call again in ten seconds")
        await stage.close(4429, "loading")

    async with staged(script) as url:
        done = await asyncio.to_thread(say, QUESTION, "--url", url)
    assert done.returncode == 6
    assert "while the model loads; call again in ten seconds" in done.stderr
    assert "full" not in done.stderr


async def test_a_caller_who_must_wait_is_told_and_then_served(server_url: str) -> None:
    async with open_link(server_url):
        command = [sys.executable, "-m", "client", "say", str(QUESTION), "--url", server_url, "--speed", "8"]
        waiting = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        assert b"place 1" in await waiting.stderr.readline()
        assert waiting.returncode is None
    answer = await waiting.stdout.read()
    assert await waiting.wait() == 0
    assert b"turn 1" in answer


def test_sampling_flags_have_the_stock_pages_names() -> None:
    flags = "--text-temperature 0.5 --text-topk 7 --audio-temperature 0.25 --audio-topk 9 --pad-mult -1.5 "
    flags += "--repetition-penalty 1.1 --repetition-penalty-context 30 --seed 4"
    assert sampling_query(build_parser().parse_args(["say", "a.wav", *flags.split()])) == {
        "text_temperature": "0.5",
        "text_topk": "7",
        "audio_temperature": "0.25",
        "audio_topk": "9",
        "pad_mult": "-1.5",
        "repetition_penalty": "1.1",
        "repetition_penalty_context": "30",
        "text_seed": "4",
        "audio_seed": "4",
    }


def test_a_flag_wins_over_greedy() -> None:
    arguments = build_parser().parse_args(["say", "a.wav", "--greedy", "--audio-temperature", "0.3"])
    assert sampling_query(arguments) == {"text_temperature": "0", "audio_temperature": "0.3"}


def test_nothing_heavy_is_imported() -> None:
    """A client starts at once, and on a machine that has neither torch nor the demo's extras."""
    heavy = ("torch", "moshi", "aiohttp", "matplotlib", "faster_whisper", "whisper_normalizer", "server.engine")
    code = f"import sys, client.__main__; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exit_code_is_explained() -> None:
    explained = {int(code) for code in re.findall(r"^ +(\d+)  ", say_module.EXIT_CODES, re.MULTILINE)}
    assert explained == {0, 130} | {kind.exit_code for kind in tree(ClientError)}


def tree(kind: type[ClientError]) -> list[type[ClientError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in tree(below))]
