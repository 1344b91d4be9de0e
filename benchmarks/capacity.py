"""How many callers a server holds at once, over real sockets with Opus: ours and the `moshi` package's, in one run.

Held means: everybody served, nothing dropped, skipped or missing, and 99 of 100 ticks within 80 ms. The number is
found by doubling and bisection with short loads, then confirmed by one that is longer than the model's context, so
that the last seconds are as expensive as any call gets; when that fails, with fewer callers until one holds.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.servers import our_server, stock_server
from benchmarks.trial import Verdict, judge, load, settle
from client.load.report import LoadReport

__all__ = ["Held", "find_capacity", "main"]

_GOAL_CALLERS: Final = 32
_GOAL_DELAY_MS: Final = 30.0
_MOST_RETREATS: Final = 6
_SMALL_RETREATS: Final = 2
_STOCK_HOLDS_BACK: Final = 1
"""The stock server packs 960 samples into a packet, which divides no frame of a 16 kHz codec: two frames in three are
complete a frame late. That is no slowness, so it costs the stock server no caller here; it is in its delay."""
_SLOWER_RAMP: Final = 0.15
"""Callers begin this many seconds apart: a crowd in one second is another question."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a search: callers held, the load that confirmed it, and why one more did not hold."""

    callers: int
    confirmed: LoadReport | None
    limit: str


Trial = Callable[[int, float], tuple[LoadReport, Verdict]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("capacity", __doc__)
    options.add_argument(
        "--most", type=int, default=64, metavar="N", help="callers to try at most (default: %(default)s)"
    )
    options.add_argument("--trial-seconds", type=float, default=12.0, metavar="S", help="of a load of the search")
    options.add_argument("--confirm-seconds", type=float, default=75.0, metavar="S", help="of the last load")
    options.add_argument(
        "--server-flag", action="append", default=[], metavar="FLAG", help="for our server; repeatable"
    )
    given = options.parse_args(arguments)
    with our_server(given.checkpoint, slots=given.most, flags=given.server_flag) as running:
        note(f"our server took calls after {running.ready_s:.1f} s")
        ours_alone = load(running.url, callers=1, seconds=given.trial_seconds, ramp_s=0)
        ours = find_capacity(_trial(running.url), given.most, given.trial_seconds, given.confirm_seconds)
    with stock_server(given.checkpoint) as running:
        stock_alone = load(running.url, callers=1, seconds=given.trial_seconds, ramp_s=0)
        note("the moshi server")
        stock = find_capacity(
            _trial(running.url, held_back=_STOCK_HOLDS_BACK), 2, given.trial_seconds, given.trial_seconds
        )
    publish("capacity", _rows(ours, stock, ours_alone, stock_alone), as_json=given.json)


def find_capacity(trial: Trial, most: int, trial_s: float, confirm_s: float) -> Held:
    """Search up to `most` callers. A trial takes a number of callers and seconds."""
    held, failed, limit = 0, most + 1, f"{most} were tried at most"
    callers = 1
    while failed - held > 1:
        _, verdict = trial(callers, trial_s)
        if verdict.held:
            held = callers
        else:
            failed, limit = callers, f"{callers}: {verdict.reason}"
        callers = min(2 * held, most) if failed > most else (held + failed) // 2
    for retreat in range(_MOST_RETREATS):
        if held <= 0:
            break
        report, verdict = trial(held, confirm_s)
        if verdict.held:
            return Held(callers=held, confirmed=report, limit=limit)
        limit = f"{held}: {verdict.reason}"
        held -= 1 if retreat < _SMALL_RETREATS else max(1, held // 8)
    return Held(callers=0, confirmed=None, limit=limit)


def _trial(url: str, *, held_back: int = 0) -> Trial:
    def run(callers: int, seconds: float) -> tuple[LoadReport, Verdict]:
        report = _fair_load(url, callers, seconds)
        verdict = judge(report, held_back=held_back)
        outcome = "held" if verdict.held else verdict.reason
        note(f"{callers} callers for {seconds:.0f} s: p99 {verdict.p99_ms} ms, {outcome}")
        return report, verdict

    return run


def _fair_load(url: str, callers: int, seconds: float) -> LoadReport:
    """Hold a load; again when the load generator itself was late, which says nothing of the server."""
    report = _settled_load(url, callers, seconds, seed=callers)
    if not report.client.trustworthy:
        report = _settled_load(url, callers, seconds, seed=1000 + callers)
    return report


def _settled_load(url: str, callers: int, seconds: float, seed: int) -> LoadReport:
    settle(url)
    ramp_s = _SLOWER_RAMP * callers
    return load(url, callers=callers, seconds=seconds + ramp_s, ramp_s=ramp_s, seed=seed)


def _rows(ours: Held, stock: Held, ours_alone: LoadReport, stock_alone: LoadReport) -> list[Row]:
    def delay(report: LoadReport) -> float | None:
        return report.delay_ms.p50 if report.delay_ms else None

    rows = [
        compare(
            "callers_held",
            ours.callers,
            "callers",
            better="higher",
            peer="moshi",
            peer_value=stock.callers,
            goal=_GOAL_CALLERS,
            remark=f"ours: {ours.limit}; moshi: {stock.limit}",
        ),
        compare(
            "added_delay_p50_ms",
            delay(ours_alone),
            "ms",
            better="lower",
            peer="moshi",
            peer_value=delay(stock_alone),
            goal=_GOAL_DELAY_MS,
            remark="one caller",
        ),
    ]
    if ours.confirmed is not None:
        rows += _at_capacity(ours.confirmed)
    return rows


def _at_capacity(report: LoadReport) -> list[Row]:
    """What the confirming load looked like; no goals."""
    ticks = report.server_ticks or {}
    rows = [
        compare(f"held_{name}", getattr(ticks["total"], name), "ms", better="lower", remark="tick, at capacity")
        for name in ("p50_ms", "p95_ms", "p99_ms", "max_at_most_ms")
        if "total" in ticks
    ]
    late = 100 * report.frames.late / max(1, report.frames.answered)
    rows.append(compare("held_late_percent", late, "% of frames", better="lower", remark="for an 80 ms jitter buffer"))
    client_ms = report.client.read_late_ms.p99
    rows.append(compare("held_client_late_p99_ms", client_ms, "ms", better="lower", remark="the load generator's own"))
    return rows


if __name__ == "__main__":
    main()
