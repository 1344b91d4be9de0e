"""Durable frames per second: how fast the journal's writer takes frames of many calls, each commit on the disk.

`--callers` calls hand over ticks as fast as the bounded queue takes them; a frame counts when its commit has returned.
Beside it, a loop of commits with one page each says what the disk itself can do. What the server's own tick pays for
being kept is measured by `journal_tick`.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.journal_tick import measure_tick
from benchmarks.report import Row, compare, note, parser, publish
from server.journal import JournalWriter, SessionRecord, TickRecord, exclusive, open_journal

__all__ = ["main"]

_CODEBOOKS: Final = 17
_GOAL: Final = 50_000.0
_PATIENCE: Final = 8
_FRAME_RATE: Final = 12.5


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(Path(folder), callers=arguments.callers, seconds=arguments.seconds)
        rows += measure_tick(Path(folder), callers=arguments.tick_callers, seconds=arguments.tick_seconds)
    publish("journal", rows, as_json=arguments.json)


def measure(folder: Path, *, callers: int, seconds: float) -> list[Row]:
    """Record for so long in `folder`. Returns the rows."""
    journal = open_journal(folder)
    writer = JournalWriter(journal.engine, journal.keys)
    ids = tuple(f"call{number:08d}" for number in range(callers))
    with exclusive(journal.engine, folder):
        writer.start()
        note(f"{callers} calls begin")
        for each in ids:
            writer.begin(_session(each))
        while writer.figures.commits == 0 and writer.healthy:
            time.sleep(0.05)
        durable, hand_over_s, elapsed_s = _record(writer, ids, seconds)
        writer.stop()
    figures = writer.figures
    remark = (
        f"{callers} callers, {figures.commits} commits, {figures.dropped_frames} dropped, {figures.lost_frames} lost"
    )
    return [
        compare("durable_frames_per_s", durable / elapsed_s, "frames/s", better="higher", goal=_GOAL, remark=remark),
        compare("callers_in_real_time", durable / elapsed_s / _FRAME_RATE, "callers", better="higher"),
        compare(
            "hand_over_us", 1e6 * hand_over_s, "us", better="lower", remark="what a tick pays, all callers together"
        ),
        compare("fsyncs_per_s", _fsyncs(folder), "1/s", better="higher", remark="one page each, the disk alone"),
    ]


def _record(writer: JournalWriter, ids: tuple[str, ...], seconds: float) -> tuple[int, float, float]:
    """Durable frames, median seconds of a hand-over, and the time it took, until the last of them was durable."""
    hand_overs = []
    before = writer.figures.durable_frames
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < seconds and writer.healthy:
        if writer.waiting > _PATIENCE:
            time.sleep(0.002)
            continue
        tick = _tick(ids, number)
        handed = time.perf_counter()
        writer.frames(tick)
        hand_overs.append(time.perf_counter() - handed)
        number += 1
    last = writer.figures.commits
    while writer.figures.commits < last + 2 and writer.healthy and writer.waiting:
        time.sleep(0.01)
    return writer.figures.durable_frames - before, float(np.median(hand_overs)), time.monotonic() - began


def _session(each: str) -> SessionRecord:
    return SessionRecord(
        id=each,
        started_at=time.time(),
        checkpoint="mini",
        version="benchmark",
        detector="none",
        seed=0,
        codebooks=_CODEBOOKS,
        model_codebooks=8,
        frame_rate=_FRAME_RATE,
    )


def _tick(ids: tuple[str, ...], number: int) -> TickRecord:
    tokens = np.random.default_rng(number).integers(0, 2048, (len(ids), _CODEBOOKS))
    return TickRecord(
        sessions=ids, ticks=(number,) * len(ids), tokens_NK=tokens, logprob_N=np.full(len(ids), -0.5, np.float32)
    )


def _fsyncs(folder: Path, count: int = 50) -> float:
    descriptor = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT, 0o600)
    began = time.monotonic()
    for _ in range(count):
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)
    os.close(descriptor)
    return count / (time.monotonic() - began)


def _parser() -> argparse.ArgumentParser:
    made = parser("journal", __doc__)
    made.add_argument("--callers", type=int, default=4000, help="calls recorded at once (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=10.0, help="how long (default: %(default)s)")
    made.add_argument("--tick-callers", type=int, default=32, help="calls whose tick is timed (default: %(default)s)")
    made.add_argument("--tick-seconds", type=float, default=40.0, help="how long (default: %(default)s)")
    made.add_argument("--folder", default=None, help="on the disk to measure (default: the temporary folder)")
    return made


if __name__ == "__main__":
    main()
