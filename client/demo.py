"""`make demo`: five spoken questions to a server of our own, over a real socket, without a microphone; then it learns.

The questions ship with the project. An answer is right when the model's text says what was expected; an
independent recogniser, which hears only the sound that came back, confirms it or does not. This file tells
the story and judges; starting a server, holding a call, drawing and the second half (`demo_learning`) are elsewhere.
"""

import argparse
import asyncio
import math
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import soundfile

from client.activity import Turn
from client.call import CallReport, TimedPiece, hold_call
from client.demo_learning import Learned, learn_while_serving, table
from client.errors import ClientError, SoundFileError
from client.judge import Recogniser, agrees
from client.link import open_link
from client.local_server import local_server
from client.recording import Recording
from client.sound import FRAME_S, FRAME_SIZE, Pcm, read_frames
from client.timeline import CallPicture, Word, draw

__all__ = ["Asked", "Question", "load_questions", "main"]

ASSETS: Final = Path(__file__).parent.parent / "tests" / "assets" / "speech"
SAMPLING: Final = {"text_temperature": "0", "audio_temperature": "0"}
RIGHT_SHARE: Final = 0.8

_HEAD_S: Final = 0.5
_LEAST_WAIT_S: Final = 2.0
_LONGEST_WAIT_S: Final = 15.0
_MUTE_AFTER_S: Final = 6.0
_ANSWERED_AFTER_S: Final = 1.2
_LONGEST_HEARD: Final = 70


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the speech assets' index. `heldout` voices and wordings were never trained on."""

    file: str
    text: str
    expected: str
    category: str
    voice: str
    heldout: bool
    demo: bool = False


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A question, what came back, and the two judgements. `heard` is the recogniser's text."""

    question: Question
    report: CallReport
    heard: str
    right: bool
    confirmed: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo. Exits with 0 only if at least four of five answers are right and it learned while it served."""
    arguments = _parser().parse_args(argv)
    try:
        asked = _demonstrate(arguments)
        learned = None if arguments.no_learning else _learn(arguments)
    except ClientError as problem:
        print(f"demo: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    right = sum(each.right for each in asked)
    enough = right >= math.ceil(RIGHT_SHARE * len(asked))
    _print_summary(asked, arguments)
    sys.exit(0 if enough and (learned is None or learned.happened) else 1)


def load_questions(folder: Path) -> list[Question]:
    """Questions of the demo, in the order of `index.json`. Raises SoundFileError when there is none."""
    try:
        index = msgspec.json.decode((folder / "index.json").read_bytes(), type=list[Question])
    except (OSError, msgspec.DecodeError) as problem:
        raise SoundFileError(f"Cannot read the questions in {folder}/index.json ({problem}).") from problem
    if not (questions := [question for question in index if question.demo]):
        raise SoundFileError(f'No question in {folder}/index.json says "demo": true.')
    return questions


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m client.demo", description="Five spoken questions, judged.")
    parser.add_argument("--checkpoint", default="mini", help="what the server serves (default: %(default)s)")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder with the questions and index.json")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for recordings (default: %(default)s)")
    parser.add_argument("--recogniser", type=Path, help="folder of a faster-whisper model")
    parser.add_argument("--no-learning", action="store_true", help="only ask the questions")
    return parser


def _learn(arguments: argparse.Namespace) -> Learned:
    learned = learn_while_serving(arguments.checkpoint, arguments.out)
    (arguments.out / "learning.json").write_bytes(msgspec.json.format(msgspec.json.encode(learned)))
    print(table(learned) + "\n")
    return learned


def _demonstrate(arguments: argparse.Namespace) -> list[Asked]:
    questions = load_questions(arguments.assets)
    arguments.out.mkdir(parents=True, exist_ok=True)
    reports = _hold_calls(questions, arguments)
    recogniser = Recogniser(arguments.recogniser)
    asked = []
    for number, (question, report) in enumerate(zip(questions, reports, strict=True), start=1):
        each = _judge(question, report, recogniser.hear(_load(_reply_file(arguments.out, number))))
        _print_asked(number, each)
        asked.append(each)
    pictures = [_picture(each, _call_file(arguments.out, number)) for number, each in enumerate(asked, start=1)]
    draw(arguments.out / "timeline.png", pictures, title=_title(asked))
    (arguments.out / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(asked)))
    return asked


def _hold_calls(questions: Sequence[Question], arguments: argparse.Namespace) -> list[CallReport]:
    began_at = time.monotonic()
    print(f"starting a server with the checkpoint {arguments.checkpoint}")
    with local_server(arguments.checkpoint, log=arguments.out / "server.log", flags=["--slots", "1"]) as url:
        print(f"ready after {time.monotonic() - began_at:.1f} s; asking {len(questions)} questions at {url}\n")
        return [
            asyncio.run(_ask(url, arguments.assets / question.file, arguments.out, number))
            for number, question in enumerate(questions, start=1)
        ]


async def _ask(url: str, file: Path, folder: Path, number: int) -> CallReport:
    async with open_link(url, query=SAMPLING) as link:
        with Recording(reply=_reply_file(folder, number), call=_call_file(folder, number)) as recording:
            return await hold_call(link, _question_then_silence(file, recording), recording, url=url)


def _question_then_silence(file: Path, recording: Recording) -> Iterator[Pcm]:
    """The question, and then silence until the model has answered and been quiet for a moment."""
    yield from read_frames(file, head_s=_HEAD_S)
    waited_s = 0.0
    while waited_s < _LEAST_WAIT_S or not _has_finished(recording, waited_s):
        yield np.zeros(FRAME_SIZE, np.float32)
        waited_s += FRAME_S


def _has_finished(recording: Recording, waited_s: float) -> bool:
    quiet_s = recording.model_quiet_for_s()
    if quiet_s is None:
        return waited_s > _MUTE_AFTER_S
    return quiet_s > _ANSWERED_AFTER_S or waited_s > _LONGEST_WAIT_S


def _judge(question: Question, report: CallReport, heard: str) -> Asked:
    return Asked(
        question=question,
        report=report,
        heard=heard,
        right=agrees(question.expected, report.text),
        confirmed=agrees(question.expected, heard),
    )


def _print_asked(number: int, asked: Asked) -> None:
    print(f"{number}. {asked.question.voice} asks:   {asked.question.text}")
    print(f"   the model writes:  {asked.report.text or '(nothing)'}   [{'right' if asked.right else 'WRONG'}]")
    print(f"   recogniser hears:  {asked.heard or '(nothing)'}   [{'same' if asked.confirmed else 'not the same'}]")
    if not asked.right:
        print(f"   expected:          {asked.question.expected}")
    print(f"   {_latency(asked.report.turns)}\n")


def _latency(turns: Sequence[Turn]) -> str:
    if not turns or turns[0].latency_s is None:
        return "not answered"
    heard_s = turns[0].heard_latency_s
    heard = "" if heard_s is None else f"; the caller hears it after {heard_s:+.2f} s"
    return f"answered {turns[0].latency_s:+.2f} s after the end of the question{heard}"


def _print_summary(asked: Sequence[Asked], arguments: argparse.Namespace) -> None:
    right = sum(each.right for each in asked)
    confirmed = sum(each.confirmed for each in asked)
    print(f"{right} of {len(asked)} answers are right; the recogniser understood {confirmed} of them as expected.")
    print(f"Recordings, timeline.png and result.json are in {arguments.out}/")
    print(f"Start the server for a client of yours: {_server_line(arguments.checkpoint)}")


def _server_line(checkpoint: str) -> str:
    program = Path(sys.executable).with_name("duologue-server")
    here = Path.cwd()
    shown = program.relative_to(here) if program.is_relative_to(here) else program
    return f"{shown} --checkpoint {checkpoint}"


def _title(asked: Sequence[Asked]) -> str:
    return f"Duologue: {len(asked)} spoken questions, {sum(each.right for each in asked)} right answers"


def _picture(asked: Asked, call_file: Path) -> CallPicture:
    sound = _load(call_file)
    verdict = "right" if asked.right else "wrong"
    heard = textwrap.shorten(asked.heard or "nothing", _LONGEST_HEARD, placeholder=" …")
    return CallPicture(
        question=asked.question.text,
        verdict=f"{verdict} · recogniser hears: {heard}",
        user=sound[:, 0],
        model=sound[:, 1],
        words=tuple(join_pieces(asked.report.pieces)),
        turns=tuple(asked.report.turns),
    )


def join_pieces(pieces: Sequence[TimedPiece]) -> list[Word]:
    """Put the pieces of words together; a piece that begins with a space begins a word."""
    words: list[Word] = []
    for piece in pieces:
        if words and not piece.text.startswith(" "):
            words[-1] = Word(text=words[-1].text + piece.text, t_s=words[-1].t_s)
        else:
            words.append(Word(text=piece.text.strip(), t_s=piece.t_s))
    return [word for word in words if word.text]


def _reply_file(folder: Path, number: int) -> Path:
    return folder / f"reply_{number}.wav"


def _call_file(folder: Path, number: int) -> Path:
    return folder / f"call_{number}.wav"


def _load(path: Path) -> Pcm:
    """float32 [samples] or [samples, channels] at 24 kHz."""
    pcm: Pcm = soundfile.read(path, dtype="float32")[0]
    return pcm


if __name__ == "__main__":
    main()
