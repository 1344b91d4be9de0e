"""How late the model is heard, beyond its own 160 ms: through client and server together, and through the server alone.

Together: clicks go into the microphone of a whole client process, through a server whose model works as always and says
back what it heard (`benchmarks.parrot`), and come out of the loudspeakers; both are files on a real clock
(`client.sound_card`). Counted is all between the two: blocks, echo cancellation, Opus, sockets, the jitter buffer at
its defaults. The peer is the `moshi` package's client and server, on the same card, asked the same.

Alone: one caller's frames on a microphone's pace, timed when they arrive. Calls alternate between the servers, so that
whatever else the machine does happens to both.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.clicks import delays_ms, write_clicks
from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.servers import our_server, stock_server
from client.call import CallReport, hold_call
from client.link import open_link
from client.load.script import shipped_questions
from client.recording import Recording
from client.sound import read_frames

__all__ = ["MODEL_MS", "main"]

MODEL_MS: Final = 160.0
"""A frame of 80 ms and a delay of one more: Moshi's own, whoever serves it."""
_GOAL_MS: Final = 120.0
_SERVER_GOAL_MS: Final = 30.0
_HEAD_S: Final = 0.5
_TIMEOUT_S: Final = 300.0
_QUANTILES: Final = {"p50": 50, "p95": 95, "max": 100}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("delay", __doc__)
    options.add_argument("--calls", type=int, default=4, metavar="N", help="to each server (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=8.0, metavar="S", help="of silence after each question")
    options.add_argument(
        "--click-seconds", type=float, default=24.0, metavar="S", help="of clicks (default: %(default)s)"
    )
    given = options.parse_args(arguments)
    rows = _together(given.checkpoint, given.click_seconds) + _alone(given.checkpoint, given.calls, given.seconds)
    publish("delay", rows, as_json=given.json)


def _together(checkpoint: str, seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        starts = write_clicks(folder / "clicks.wav", seconds=seconds)
        with our_server(checkpoint, slots=1, program=("benchmarks.parrot", "ours")) as ours:
            talk = ("client", "talk", "--consent", "none", "--url", ours.url)
            found = _clicks(folder, starts, (*talk, "--input", "{in}", "--output", "{out}"))
        with stock_server(checkpoint, program=("benchmarks.parrot", "stock")) as stock:
            theirs = _clicks(folder, starts, ("benchmarks.stock_client", "{in}", "{out}", stock.url))
    note(f"clicks found: {len(found)} of {len(starts)}, the peer's {len(theirs)}")
    remark = f"{len(found)} of {len(starts)} clicks came through, the peer's {len(theirs)}"
    return _rows("added_delay", found, theirs, goal=_GOAL_MS, remark=remark)


def _clicks(folder: Path, starts: list[int], program: Sequence[str]) -> list[float]:
    """Run a client on the clicks. Gives each click's delay beyond the model's own, in milliseconds."""
    heard = folder / "heard.wav"
    heard.unlink(missing_ok=True)
    names = {"{in}": str(folder / "clicks.wav"), "{out}": str(heard)}
    command = [sys.executable, "-m", *(names.get(word, word) for word in program)]
    with (folder / "client.log").open("wb") as log:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_TIMEOUT_S, check=False)
    if not heard.exists():
        note((folder / "client.log").read_text(errors="replace"))
        return []
    return [each - MODEL_MS for each in delays_ms(heard, starts)]


def _rows(name: str, ours: Sequence[float], theirs: Sequence[float], *, goal: float, remark: str) -> list[Row]:
    return [
        compare(
            f"{name}_{quantile}_ms",
            _quantile(ours, percent),
            "ms",
            better="lower",
            peer="moshi",
            peer_value=_quantile(theirs, percent),
            goal=goal if quantile == "p50" else None,
            remark=remark,
        )
        for quantile, percent in _QUANTILES.items()
    ]


def _quantile(values: Sequence[float], percent: int) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _alone(checkpoint: str, calls: int, tail_s: float) -> list[Row]:
    reports: dict[str, list[CallReport]] = {"ours": [], "moshi": []}
    with our_server(checkpoint, slots=1) as ours, stock_server(checkpoint) as stock:
        questions = shipped_questions()
        for n in range(calls):
            for name, url in (("ours", ours.url), ("moshi", stock.url)):
                report = asyncio.run(_call(url, questions[n % len(questions)], tail_s))
                note(f"{name}, call {n + 1}: {report.delay_ms}")
                reports[name].append(report)
    return [
        compare(
            f"server_added_delay_{quantile}_ms",
            _added(reports["ours"], quantile),
            "ms",
            better="lower",
            peer="moshi",
            peer_value=_added(reports["moshi"], quantile),
            goal=_SERVER_GOAL_MS if quantile == "p50" else None,
            remark="median of the calls' own",
        )
        for quantile in _QUANTILES
    ]


async def _call(url: str, question: Path, tail_s: float) -> CallReport:
    async with open_link(url) as link:
        with Recording() as recording:
            return await hold_call(link, read_frames(question, head_s=_HEAD_S, tail_s=tail_s), recording, url=url)


def _added(reports: Sequence[CallReport], quantile: str) -> float | None:
    values = [getattr(report.delay_ms, quantile) - MODEL_MS for report in reports if report.delay_ms]
    return statistics.median(values) if values else None


if __name__ == "__main__":
    main()
