"""A long load with callers who come, go, and sometimes vanish: is memory flat, is every slot there, is nobody later?

The server is ours, the callers are `duologue load`'s. Meanwhile the server's resident memory is sampled; afterwards,
when all have left and nothing is kept for those who vanished, as many callers as there are slots must all be served.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.servers import Running, callers_served, our_server
from benchmarks.trial import load, settle
from client.load.report import LoadReport, Second

__all__ = ["Memory", "main", "soak"]

_ROOT: Final = Path(__file__).parents[1]
_SAMPLE_S: Final = 1.0
_PARKED_S: Final = 60.0
"""A slot may be kept for a caller who vanished and might come back; after so long it is lost."""
_LAST_LOAD_S: Final = 4.0
_GOAL_GROWTH_MB: Final = 16.0
_GOAL_DRIFT_PERCENT: Final = 0.5
_RESIDENT: Final = "VmRSS:"


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of the server, in MB, once a second; empty where the system does not tell."""

    samples_mb: list[float]

    @property
    def growth_mb(self) -> float | None:
        """Median of the last quarter over that of the second: the first one warms caches and buffers up."""
        quarter = len(self.samples_mb) // 4
        if not quarter:
            return None
        return statistics.median(self.samples_mb[-quarter:]) - statistics.median(self.samples_mb[quarter : 2 * quarter])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("soak", __doc__)
    options.add_argument("--minutes", type=float, default=30.0, metavar="M", help="(default: %(default)s)")
    options.add_argument("--callers", type=int, default=25, metavar="N", help="places held by callers (%(default)s)")
    options.add_argument("--slots", type=int, metavar="N", help="of the server (default: as many as callers)")
    options.add_argument("--call-seconds", type=float, default=45.0, metavar="S", help="mean of a call (%(default)s)")
    options.add_argument("--rude", type=float, default=0.2, metavar="SHARE", help="of calls (%(default)s)")
    given = options.parse_args(arguments)
    slots = given.slots or given.callers
    with our_server(given.checkpoint, slots=slots) as running:
        rows = soak(
            running,
            seconds=60 * given.minutes,
            callers=given.callers,
            slots=slots,
            call_s=given.call_seconds,
            rude=given.rude,
        )
    publish("soak", rows, as_json=given.json)


def soak(running: Running, *, seconds: float, callers: int, slots: int, call_s: float, rude: float) -> list[Row]:
    """Load a running server of `slots` slots and give the rows."""
    report, memory = _load_and_watch(running, seconds, callers, call_s, rude)
    kept = _wait_until_empty(running.url)
    settle(running.url)
    note(f"{report.calls.calls} calls; now {slots} callers at once")
    last = load(running.url, callers=slots, seconds=_LAST_LOAD_S + 0.1 * slots, ramp_s=0.1 * slots)
    first, second = _halves(report.series)
    problems = "; ".join(report.problems)
    return [
        compare("calls", report.calls.calls, "calls", better="higher", remark=f"{report.calls.rude} vanished"),
        compare("failed_calls", report.calls.failed, "calls", better="lower", goal=0, remark=problems),
        compare("slots_lost", slots - last.calls.served, "slots", better="lower", goal=0),
        compare("calls_left_open", kept, "calls", better="lower", goal=0, remark=f"{_PARKED_S:.0f} s after the last"),
        compare("memory_growth_mb", memory.growth_mb, "MB", better="lower", goal=_GOAL_GROWTH_MB),
        compare("late_percent_first_half", first, "% of frames", better="lower"),
        compare("late_percent_second_half", second, "% of frames", better="lower"),
        compare("late_drift_percent", second - first, "points", better="lower", goal=_GOAL_DRIFT_PERCENT),
        compare("frames_lost", _lost(report), "frames", better="lower", goal=0),
        compare("client_late_p99_ms", report.client.read_late_ms.p99, "ms", better="lower", remark="load generator"),
    ]


def _load_and_watch(
    running: Running, seconds: float, callers: int, call_s: float, rude: float
) -> tuple[LoadReport, Memory]:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.json"
        figures = {"callers": callers, "seconds": seconds, "call-seconds": call_s, "rude": rude, "json": file}
        command = [sys.executable, "-m", "client", "load", "--url", running.url]
        command += [f"--{name}={value}" for name, value in figures.items()]
        samples: list[float] = []
        with subprocess.Popen(command, stdout=sys.stderr, cwd=_ROOT) as process:
            try:
                while process.poll() is None:
                    samples += _resident_mb(running.pid)
                    time.sleep(_SAMPLE_S)
            finally:
                process.terminate()
        report = msgspec.json.decode(file.read_bytes(), type=LoadReport)
    return report, Memory(samples_mb=samples)


def _resident_mb(pid: int) -> list[float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) / 1024 for line in lines if line.startswith(_RESIDENT)]


def _wait_until_empty(url: str) -> int:
    """Wait until no call is left, at most as long as one may be kept. Returns how many are."""
    deadline = time.monotonic() + _PARKED_S
    while (left := callers_served(url)) and time.monotonic() < deadline:
        time.sleep(_SAMPLE_S)
    return left


def _halves(series: Sequence[Second]) -> tuple[float, float]:
    """Late frames of each half of the load, in percent of those that were heard; a caller has 12.5 a second."""
    middle = len(series) // 2

    def percent(part: Sequence[Second]) -> float:
        return 100 * sum(each.late for each in part) / max(1.0, 12.5 * sum(each.callers for each in part))

    return percent(series[:middle]), percent(series[middle:])


def _lost(report: LoadReport) -> int:
    return report.frames.dropped + report.frames.skipped + report.frames.missing


if __name__ == "__main__":
    main()
