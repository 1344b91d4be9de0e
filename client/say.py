"""`duologue say`: a sound file goes in over a real call, the model's answer comes out as files and figures.

This file owns the command line and what is printed. The call itself is `client.call`.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from client.activity import Turn
from client.call import CallReport, hold_call
from client.errors import ClientError, TokenFileError
from client.link import open_link
from client.recording import Recording
from client.sound import read_frames
from server.protocol import QueuePosition

__all__ = ["add_arguments", "run", "sampling_query"]

DEFAULT_URL: Final = "ws://127.0.0.1:8998"

EXIT_CODES: Final = """exit codes:
  0  the call was held to its end
  1  a fault of this program
  2  wrong arguments, or a file that cannot be read or written
  3  no dialogue server at that address
  4  the server wants a token
  5  the server refused the call, for the reason printed
  6  the server takes no call now: it is full, still loading, or about to stop
  7  the connection was lost during the call
  130  interrupted"""

_SAMPLING: Final = {
    "text_temperature": (float, "0 for greedy"),
    "text_topk": (int, "words to choose from, 0 for all"),
    "audio_temperature": (float, "0 for greedy"),
    "audio_topk": (int, "sounds to choose from, 0 for all"),
    "pad_mult": (float, "above 0 the model waits longer, below 0 it talks sooner"),
    "repetition_penalty": (float, "above 1 the model repeats itself less"),
    "repetition_penalty_context": (int, "how many words back that looks"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `duologue say`."""
    parser.add_argument("file", type=Path, help="what to say: WAV, FLAC or Ogg/Opus of any rate, mono or stereo")
    url = os.environ.get("DUOLOGUE_URL", DEFAULT_URL)
    parser.add_argument(
        "--url", default=url, help="the server (default: %(default)s; the environment variable DUOLOGUE_URL changes it)"
    )
    parser.add_argument("--out", type=Path, metavar="REPLY.wav", help="write the model's sound here")
    parser.add_argument("--stereo", type=Path, metavar="CALL.wav", help="write both sides: user left, model right")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    parser.add_argument(
        "--speed", type=_above(0.0), default=1.0, metavar="X", help="times real time, where the server allows it"
    )
    parser.add_argument("--channel", choices=("mix", "left", "right"), default="mix", help="of a stereo file")
    parser.add_argument("--head", type=_from(0.0), default=0.0, metavar="S", help="seconds of silence before the file")
    parser.add_argument("--tail", type=_from(0.0), default=4.0, metavar="S", help="and after it (default: %(default)s)")
    parser.add_argument("--token-file", type=Path, metavar="PATH", help="file with the server's access token")
    group = parser.add_argument_group("sampling", "left out, the server's defaults hold")
    group.add_argument("--greedy", action="store_true", help="the most probable word and sound every time")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same call")
    for name, (kind, words) in _SAMPLING.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar="N", help=words)


def run(arguments: argparse.Namespace) -> int:
    """Hold the call that `arguments` describe. Returns the exit code."""
    try:
        report = asyncio.run(_say(arguments))
    except ClientError as problem:
        print(f"duologue say: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        print("\n".join(_sentences(report)))
    return 0


def sampling_query(arguments: argparse.Namespace) -> dict[str, str]:
    """Query parameters, under the names that the stock Moshi page uses, of the flags that were given."""
    query = {"text_temperature": "0", "audio_temperature": "0"} if arguments.greedy else {}
    given = {name: getattr(arguments, name) for name in _SAMPLING}
    query |= {name: str(value) for name, value in given.items() if value is not None}
    if arguments.seed is not None:
        query |= {"text_seed": str(arguments.seed), "audio_seed": str(arguments.seed)}
    return query


async def _say(arguments: argparse.Namespace) -> CallReport:
    frames = read_frames(arguments.file, channel=arguments.channel, head_s=arguments.head, tail_s=arguments.tail)
    call = open_link(
        arguments.url, query=sampling_query(arguments), token=_token(arguments.token_file), on_queue=_tell_position
    )
    async with call as link:
        with Recording(reply=arguments.out, call=arguments.stereo) as recording:
            return await hold_call(link, frames, recording, url=arguments.url, speed=arguments.speed)


def _token(path: Path | None) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() if path else None
    except (OSError, UnicodeDecodeError) as problem:
        raise TokenFileError(f"Cannot read the token in {path} ({problem}).") from problem


def _tell_position(place: QueuePosition) -> None:
    about = "" if place.eta_s is None else f", about {place.eta_s:.0f} s"
    print(f"all slots are taken: place {place.position}{about}", file=sys.stderr)


def _sentences(report: CallReport) -> list[str]:
    lines = [f"model: {report.text or '(no words)'}"]
    lines += [_turn_sentence(number, turn) for number, turn in enumerate(report.turns, start=1)]
    lines.append(
        f"frames: {report.frames_sent} sent, {report.frames_received} received; "
        f"lost {report.dropped_ms} ms of the reply, {report.skipped_ms} ms of the question"
    )
    if report.delay_ms:
        delay = report.delay_ms
        lines.append(f"sound to sound: {delay.p50:.0f} ms (p50), {delay.p95:.0f} ms (p95), {delay.max:.0f} ms (worst)")
    return lines


def _turn_sentence(number: int, turn: Turn) -> str:
    spoken = f"turn {number}: user {turn.user.start_s:.2f}-{turn.user.end_s:.2f} s"
    if turn.reply is None or turn.latency_s is None:
        return f"{spoken}, no answer"
    heard = "" if turn.heard_latency_s is None else f" (heard after {turn.heard_latency_s:+.2f} s)"
    return f"{spoken}, answered after {turn.latency_s:+.2f} s{heard}"


def _above(limit: float) -> Callable[[str], float]:
    return _number(lambda value: value > limit, f"a number above {limit:g}")


def _from(limit: float) -> Callable[[str], float]:
    return _number(lambda value: value >= limit, f"a number from {limit:g}")


def _number(allowed: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not allowed(value) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"got {text!r}; expected {expected}")
        return value

    return parse
