"""How late the model is heard, beyond its own 160 ms: one real caller, from its sound to the model's, both servers.

The caller is `client`, with all its work: frames at a microphone's pace, Opus both ways, the socket. Calls alternate
between the servers, so that whatever else the machine does happens to both.
"""

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.report import compare, note, parser, publish
from benchmarks.servers import our_server, stock_server
from client.call import CallReport, hold_call
from client.link import open_link
from client.load.script import shipped_questions
from client.recording import Recording
from client.sound import read_frames

__all__ = ["MODEL_MS", "main"]

MODEL_MS: Final = 160.0
"""A frame of 80 ms and a delay of one more: Moshi's own, whoever serves it."""
_GOAL_MS: Final = 30.0
_HEAD_S: Final = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("delay", __doc__)
    options.add_argument("--calls", type=int, default=4, metavar="N", help="to each server (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=8.0, metavar="S", help="of silence after each question")
    given = options.parse_args(arguments)
    with our_server(given.checkpoint, slots=1) as ours, stock_server(given.checkpoint) as stock:
        reports: dict[str, list[CallReport]] = {"ours": [], "moshi": []}
        questions = shipped_questions()
        for n in range(given.calls):
            for name, url in (("ours", ours.url), ("moshi", stock.url)):
                report = asyncio.run(_call(url, questions[n % len(questions)], given.seconds))
                note(f"{name}, call {n + 1}: {report.delay_ms}")
                reports[name].append(report)
    rows = [
        compare(
            f"added_delay_{quantile}_ms",
            _added(reports["ours"], quantile),
            "ms",
            better="lower",
            peer="moshi",
            peer_value=_added(reports["moshi"], quantile),
            goal=_GOAL_MS if quantile == "p50" else None,
            remark="median of the calls' own",
        )
        for quantile in ("p50", "p95", "max")
    ]
    publish("delay", rows, as_json=given.json)


async def _call(url: str, question: Path, tail_s: float) -> CallReport:
    async with open_link(url) as link:
        with Recording() as recording:
            return await hold_call(link, read_frames(question, head_s=_HEAD_S, tail_s=tail_s), recording, url=url)


def _added(reports: Sequence[CallReport], quantile: str) -> float | None:
    values = [getattr(report.delay_ms, quantile) - MODEL_MS for report in reports if report.delay_ms]
    return statistics.median(values) if values else None


if __name__ == "__main__":
    main()
