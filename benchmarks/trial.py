"""One load against a running server, by a process of its own, and whether the server held it."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from client.load.report import LoadReport

__all__ = ["Verdict", "judge", "load"]

_TICK_MS: Final = 80.0
_MOST_LATE: Final = 0.01
_SPARE_S: Final = 60.0
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
