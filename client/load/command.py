"""`duologue load`: the command line, and nothing else."""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from client.credentials import add_credentials, read_credentials
from client.errors import ClientError, RemoteLoadError, ReportFileError, UnreachableError
from client.link import chat_url
from client.load.caller import Habits
from client.load.figures import summarise
from client.load.party import Plan, run_party
from client.load.report import LoadReport, sentences
from client.load.script import read_script, shipped_questions
from client.say import DEFAULT_URL

__all__ = ["EXIT_CODES", "add_arguments", "run"]

EXIT_CODES: Final = """exit codes:
  0  the load was held, whatever the server made of it: read the report
  1  a fault of this program
  2  wrong arguments, a file that cannot be read or written, or a server that is not on this machine
  3  no dialogue server at that address: no call was served
  130  interrupted"""

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `duologue load`."""
    parser.add_argument("questions", type=Path, nargs="*", metavar="FILE", help="sound files with what callers say")
    url = os.environ.get("DUOLOGUE_URL", DEFAULT_URL)
    parser.add_argument("--url", default=url, help="the server (default: %(default)s)")
    parser.add_argument("--callers", type=_callers, default=8, metavar="N", help="at once (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=_above_zero, default=30.0, metavar="S", help="the whole load (default: %(default)s)"
    )
    parser.add_argument(
        "--ramp-seconds", type=_from_zero, metavar="S", help="in which callers begin (default: a quarter, at most 10)"
    )
    parser.add_argument(
        "--call-seconds", type=_above_zero, metavar="S", help="mean length of a call, then the caller calls again"
    )
    parser.add_argument(
        "--rude", type=_share, default=0.0, metavar="SHARE", help="of calls that end without a word (default: 0)"
    )
    parser.add_argument("--jitter-ms", type=_from_zero, default=80.0, metavar="MS", help="buffer of a caller's player")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same callers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here; - for standard output")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw it (needs matplotlib)")
    add_credentials(parser)
    parser.add_argument(
        "--yes-load-a-remote-server", action="store_true", help="the server is on another machine, and mine to load"
    )


def run(arguments: argparse.Namespace) -> int:
    """Hold the load that `arguments` describe. Returns the exit code."""
    try:
        report = _load(arguments)
    except ClientError as problem:
        print(f"duologue load: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        return 130
    to_stdout = arguments.json == Path("-")
    print("\n".join(sentences(report)), file=sys.stderr if to_stdout else sys.stdout)
    if to_stdout:
        print(msgspec.json.encode(report).decode())
    return 0


def _load(arguments: argparse.Namespace) -> LoadReport:
    url = chat_url(arguments.url, {})
    _check_host(url, allowed=arguments.yes_load_a_remote_server)
    script = read_script(arguments.questions or shipped_questions())
    ramp_s = min(10.0, arguments.seconds / 4) if arguments.ramp_seconds is None else arguments.ramp_seconds
    plan = Plan(
        habits=Habits(
            url=url, credentials=read_credentials(arguments), call_s=arguments.call_seconds, rude=arguments.rude
        ),
        callers=arguments.callers,
        seconds=arguments.seconds,
        ramp_s=min(ramp_s, arguments.seconds),
        seed=arguments.seed,
        jitter_s=arguments.jitter_ms / 1000,
    )
    gc.collect()
    gc.freeze()  # what is there for good: a full round of the collector would make this program late
    report = summarise(run_party(plan, script))
    if not report.calls.served and report.problems:
        raise UnreachableError(f"No call was served at {arguments.url}: {'; '.join(report.problems)}.")
    _write(report, arguments)
    return report


def _check_host(url: str, *, allowed: bool) -> None:
    host = urlsplit(url).hostname
    if host not in _LOOPBACK and not allowed:
        raise RemoteLoadError(
            f"Got the host {host!r}; expected this machine (127.0.0.1), so that nobody else is flooded by mistake. "
            "Give --yes-load-a-remote-server if that server is yours to load."
        )


def _write(report: LoadReport, arguments: argparse.Namespace) -> None:
    try:
        if arguments.json and arguments.json != Path("-"):
            arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
        if arguments.picture:
            from client.load.picture import draw  # noqa: PLC0415 - matplotlib, for those who want a picture

            draw(arguments.picture, report)
    except (OSError, ImportError) as problem:
        raise ReportFileError(f"Cannot write the report ({problem}): name a file in a folder that exists.") from problem


def _callers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 1")
    return int(text)


def _above_zero(text: str) -> float:
    return _number(text, lambda value: 0 < value < float("inf"), "a number above 0")


def _from_zero(text: str) -> float:
    return _number(text, lambda value: 0 <= value < float("inf"), "a number from 0")


def _share(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= 1, "a share from 0 to 1")


def _number(text: str, allowed: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected {expected}")
    return value
