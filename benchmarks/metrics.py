"""What counting costs: a tick's observations against the tick, with 1 and with 32 callers in it.

The observations are those that the server makes for one step and for each caller in it (`scheduler`, `session`), on a
registry of the server's own kind. They are held against what the engine's step takes in the same run, and against the
80 ms a frame has; the same observations are made with `prometheus_client`'s own histograms, too. A scrape is timed: it
happens every few seconds, on the event loop.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.servers import checkpoint_folder
from server.engine import Engine
from server.metrics import FrameResult, Metrics, Stage

__all__ = ["main", "one_tick"]

_GOAL: Final = 0.01
_FRAME_S: Final = 0.08
_STEP: Final = (Stage.STEP, Stage.ENCODE, Stage.TEMPORAL, Stage.DEPTH, Stage.DECODE)
_CALLER: Final = (Stage.OPUS_DECODE, Stage.OPUS_ENCODE, Stage.INGEST, Stage.EMIT, Stage.TOTAL)
_PACKETS: Final = 2
"""Messages with sound in a frame, at most, of a client that sends each Opus packet of 40 ms by itself."""


def one_tick(metrics: Metrics, callers: int) -> None:
    """Observe what a step with so many callers in it makes the server observe."""
    for stage in _STEP:
        metrics.observe(stage, 0.004)
    metrics.observe_slack(0.06)
    for _ in range(callers):
        for stage in _CALLER:
            metrics.observe(stage, 0.012)
        for _ in range(_PACKETS - 1):
            metrics.observe(Stage.OPUS_DECODE, 0.0001)
        metrics.count_frames(FrameResult.ON_TIME)


def _one_stock_tick(tick: Histogram, frames: Counter, callers: int) -> None:
    """The same with the package's own kinds, looked up by label as its documentation shows."""
    for stage in _STEP:
        tick.labels(stage).observe(0.004)
    tick.labels(Stage.STEP).observe(0.06)
    for _ in range(callers):
        for stage in _CALLER:
            tick.labels(stage).observe(0.012)
        for _ in range(_PACKETS - 1):
            tick.labels(Stage.OPUS_DECODE).observe(0.0001)
        frames.labels(FrameResult.ON_TIME).inc()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("metrics", __doc__)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 32], metavar="N", help="callers in a step")
    options.add_argument("--rounds", type=int, default=15, metavar="N", help="of each measurement (%(default)s)")
    given = options.parse_args(arguments)
    rows: list[Row] = []
    for callers in given.rows:
        rows += _measured(given.checkpoint, callers, given.rounds)
    metrics = Metrics()
    scrape_s = _median_s(metrics.expose, given.rounds)
    rows.append(compare("scrape_ms", 1000 * scrape_s, "ms", better="lower", remark="every few seconds"))
    publish("metrics", rows, as_json=given.json)


def _measured(checkpoint: str, callers: int, rounds: int) -> Iterator[Row]:
    engine = Engine.load(checkpoint_folder(checkpoint), slots=callers, device="cpu")
    engine.warm_up()
    step_s = engine.measure_step(callers, rounds)
    del engine
    metrics, stock = Metrics(), CollectorRegistry()
    tick = Histogram("tick_seconds", "The same.", ["stage"], registry=stock, buckets=tuple(n / 200 for n in range(21)))
    frames = Counter("frames", "The same.", ["result"], registry=stock)
    ours_s = _median_s(lambda: one_tick(metrics, callers), rounds)
    theirs_s = _median_s(lambda: _one_stock_tick(tick, frames, callers), rounds)
    note(f"{callers} callers: a step {1e3 * step_s:.2f} ms, counting {1e6 * ours_s:.1f} µs")
    name = f"metrics_us_rows_{callers}"
    yield compare(name, 1e6 * ours_s, "µs", better="lower", peer="prometheus_client alone", peer_value=1e6 * theirs_s)
    yield compare(
        f"metrics_share_of_step_rows_{callers}",
        ours_s / step_s,
        "of a step",
        better="lower",
        goal=_GOAL,
        remark=f"a step takes {1e3 * step_s:.2f} ms",
    )
    yield compare(f"metrics_share_of_frame_rows_{callers}", ours_s / _FRAME_S, "of 80 ms", better="lower", goal=_GOAL)


def _median_s(work: Callable[[], object], rounds: int, *, repeats: int = 20) -> float:
    """Seconds of one `work`: the median of rounds of several."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        took.append((time.perf_counter() - began) / repeats)
    return statistics.median(took)


if __name__ == "__main__":
    main()
