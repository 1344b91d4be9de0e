"""`duologue say`: a sound file goes in over a real call, the model's answer comes out as files and figures.

This file owns the command line and what is printed. The call itself is `client.call`.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from client.activity import Turn
from client.arguments import (
    DEFAULT_URL,
    EXIT_CODES,
    above,
    add_sampling_arguments,
    add_server_arguments,
    at_least,
    sampling_query,
)
from client.call import CallReport, hold_call
from client.credentials import read_credentials
from client.errors import ClientError
from client.link import open_link
from client.recording import Recording
from client.sound import read_frames
from server.protocol import QueuePosition

__all__ = ["DEFAULT_URL", "EXIT_CODES", "add_arguments", "run", "sampling_query"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `duologue say`."""
    parser.add_argument("file", type=Path, help="what to say: WAV, FLAC or Ogg/Opus of any rate, mono or stereo")
    parser.add_argument("--out", type=Path, metavar="REPLY.wav", help="write the model's sound here")
    parser.add_argument("--stereo", type=Path, metavar="CALL.wav", help="write both sides: user left, model right")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    parser.add_argument(
        "--speed", type=above(0.0), default=1.0, metavar="X", help="times real time, where the server allows it"
    )
    parser.add_argument("--channel", choices=("mix", "left", "right"), default="mix", help="of a stereo file")
    parser.add_argument(
        "--head", type=at_least(0.0), default=0.0, metavar="S", help="seconds of silence before the file"
    )
    parser.add_argument(
        "--tail", type=at_least(0.0), default=4.0, metavar="S", help="and after it (default: %(default)s)"
    )
    add_server_arguments(parser)
    add_sampling_arguments(parser)


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


async def _say(arguments: argparse.Namespace) -> CallReport:
    frames = read_frames(arguments.file, channel=arguments.channel, head_s=arguments.head, tail_s=arguments.tail)
    shown = read_credentials(arguments)
    call = open_link(arguments.url, query=sampling_query(arguments), credentials=shown, on_queue=_tell_position)
    async with call as link:
        with Recording(reply=arguments.out, call=arguments.stereo) as recording:
            return await hold_call(link, frames, recording, url=arguments.url, speed=arguments.speed)


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
