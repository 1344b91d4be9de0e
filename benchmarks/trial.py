"""One load against a running server, by a process of its own, and whether the server held it."""

import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

import msgspec

from client.load.report import LoadReport
from client.load.server_metrics import metrics_url, read_metrics

__all__ = ["Verdict", "answered_and_late", "judge", "load", "settle"]

_TICK_MS: Final = 80.0
_MOST_LATE: Final = 0.01
_SPARE_S: Final = 60.0
_SETTLE_S: Final = 20.0
_BREATH_S: Final = 0.5
_GAUGES: Final = re.compile(r"^duologue_(sessions_active|sessions_waiting|sessions_parked|admission_open) (\S+)$", re.M)
_ROOT: Final = Path(__file__).parents[1]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether all callers were held, and if not, why."""

    held: bool
    reason: str
    p99_ms: float | None
    """Tick by the server's own clock, or else what it added by the callers' clocks."""


def load(url: str, *, callers: int, seconds: float, ramp_s: float, seed: int = 0) -> LoadReport:
    """Run `duologue load`. Raises `CalledProcessError` when it could not be held at all."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        figures = {"callers": callers, "seconds": seconds, "ramp-seconds": ramp_s, "seed": seed, "json": report}
        command = [sys.executable, "-m", "client", "load", "--url", url]
        command += [f"--{name}={value}" for name, value in figures.items()]
        subprocess.run(command, check=True, timeout=seconds + _SPARE_S, stdout=subprocess.DEVNULL, cwd=_ROOT)
        return msgspec.json.decode(report.read_bytes(), type=LoadReport)


def settle(url: str) -> None:
    """Wait until the last load has left no trace, where the server tells: no calls, and new ones admitted."""
    deadline = time.monotonic() + _SETTLE_S
    time.sleep(_BREATH_S)
    while _busy(metrics_url(url)) and time.monotonic() < deadline:
        time.sleep(_BREATH_S)


def _busy(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=_SETTLE_S) as response:
            found = dict(_GAUGES.findall(response.read().decode()))
    except (urllib.error.URLError, OSError):
        return False
    calls = sum(float(found.get(name, 0)) for name in ("sessions_active", "sessions_waiting", "sessions_parked"))
    return calls > 0 or float(found.get("admission_open", 1)) == 0


def answered_and_late(url: str) -> tuple[int, int]:
    """Frames that a server has answered so far, and those of them that came late. Raises `RuntimeError`."""
    scrape = read_metrics(metrics_url(url))
    if scrape is None:
        raise RuntimeError(f"{url} shows no metrics")
    late = scrape.frames.get("late", 0.0)
    return int(late + scrape.frames.get("on_time", 0.0)), int(late)


def judge(report: LoadReport, *, held_back: int = 0) -> Verdict:
    """Held: everybody served, nothing lost, and at most one tick in a hundred longer than 80 ms.

    Where the server does not tell its ticks, what it added by the callers' clocks counts, network included and
    this side's own lateness not; of that, `held_back` frames are forgiven, and as many at the end of each call.
    """
    calls, frames = report.calls, report.frames
    p99_ms, late = _ticks(report, held_back)
    lost = frames.dropped + frames.skipped + frames.missing
    reasons = (
        (calls.served < calls.callers, f"only {calls.served} of {calls.callers} callers were served"),
        (calls.failed > 0, f"{calls.failed} calls failed: {', '.join(report.problems)}"),
        (
            lost > held_back * calls.served,
            f"{frames.dropped} frames dropped, {frames.skipped} skipped, {frames.missing} missing",
        ),
        (late, f"p99 tick {p99_ms} ms"),
        (not report.client.trustworthy, "the load generator itself was late"),
    )
    reason = "; ".join(why for wrong, why in reasons if wrong)
    return Verdict(held=not reason, reason=reason, p99_ms=p99_ms)


def _ticks(report: LoadReport, held_back: int) -> tuple[float | None, bool]:
    """Give p99 in ms, and whether more than one tick in a hundred took longer than 80 ms."""
    total = (report.server_ticks or {}).get("total")
    if total is not None:
        return total.p99_ms, 1 - total.within_frame > _MOST_LATE
    if report.own_delay_ms is None:
        return None, True
    return report.own_delay_ms.p99, report.own_delay_ms.p99 > _TICK_MS * (1 + held_back)
