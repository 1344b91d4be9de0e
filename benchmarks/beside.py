"""Does a learner that computes make callers' answers late? Windows with one beside the server, and without, in turns.

`duologue-align once`, as it ships (one thread, idle class), makes one round after another, gate included, of pairs
with the lengths that calls have, in a data folder of its own. What it causes is the difference between the windows: of
frames that came late, and of the time from when a frame was due to its answer as Opus. The peer is the same server in
the windows without.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

import msgspec
import numpy as np

from benchmarks.random_pairs import random_pairs
from benchmarks.report import Row, compare, note, parser, publish
from benchmarks.servers import callers_served, checkpoint_folder
from benchmarks.swap_recorded import read_recordings, recorded_server
from benchmarks.trial import answered_and_late, load
from client.load.report import LoadReport
from online_align.pair_store import PairStore
from server.journal import JournalWriter, SessionRecord, open_journal

__all__ = ["main"]

_CALL: Final = "thepairsofthisone"
_RAMP_S: Final = 0.15
_SETTLE_S: Final = 3.0
_LATE_TO_ARRIVE_S: Final = 0.2
_LOOK_S: Final = 0.05
_STOP_S: Final = 2.0
"""For a learner to end by itself; nothing that it has made is wanted."""
_PEER: Final = "without a learner"


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time, with or without a learner."""

    learning: bool
    began_s: float
    """Monotonic."""
    ended_s: float
    answered: int
    late: int
    learner_s: float
    """Processor seconds of the learner."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("beside", __doc__)
    options.add_argument("--callers", type=int, default=8, metavar="N", help="(default: %(default)s)")
    options.add_argument("--windows", type=int, default=3, metavar="N", help="of each kind (default: %(default)s)")
    options.add_argument("--window-seconds", type=float, default=25.0, metavar="S", help="(default: %(default)s)")
    options.add_argument("--pairs", type=int, default=4, metavar="N", help="of a round (default: %(default)s)")
    options.add_argument("--priority", choices=("idle", "low", "normal"), default="idle", help="(%(default)s)")
    options.add_argument("--threads", type=int, default=1, metavar="N", help="of the learner (default: %(default)s)")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        stock = Path(place) / "stock"
        _write_pairs(stock, checkpoint_folder(given.checkpoint), given.pairs)
        with recorded_server(given.checkpoint, Path(place), ["--data-dir", str(Path(place) / "served")]) as running:
            windows, report = _take_turns(running.url, Learner(given, stock), given)
        recording, _ = read_recordings(Path(place))
    delays = np.array([(step.due_at, 1000 * (step.delivered_at - step.due_at)) for step in recording.steps])
    publish("beside", _rows(windows, delays, report), as_json=given.json)


def _write_pairs(data_dir: Path, folder: Path, pairs: int) -> None:
    """What a learner finds there: pairs of a call that was kept."""
    journal = open_journal(data_dir)
    writer = JournalWriter(journal.engine, journal.keys)
    writer.start()
    writer.begin(
        SessionRecord(
            id=_CALL, started_at=time.time(), keep=True, train=True, checkpoint=folder.name, version="benchmark",
            detector="none", seed=0, codebooks=17, model_codebooks=8, frame_rate=12.5,
        )
    )  # fmt: skip
    writer.end(_CALL, "hang_up")
    writer.stop()
    added = PairStore(journal).add(random_pairs(pairs, folder, session=_CALL))
    journal.engine.dispose()
    if added != pairs:
        raise RuntimeError(f"only {added} of {pairs} pairs could be written")


class Learner:
    """Rounds, one after another, each in a fresh copy of the `stock` of pairs."""

    def __init__(self, given: argparse.Namespace, stock: Path) -> None:
        self._stock = stock
        self._flags = [
            *("--checkpoint", str(checkpoint_folder(given.checkpoint)), "--no-collect", "--evidence", "gate"),
            *("--priority", given.priority, "--threads", str(given.threads), "--good", "0"),
        ]
        self.rounds = 0
        """Made to the end, in all."""

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Make rounds until the block ends. Raises `RuntimeError` with its log where one fails."""
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(self._work, ended)
            try:
                yield
            finally:
                ended.set()
        working.result()

    def _work(self, ended: threading.Event) -> None:
        while not ended.is_set():
            with tempfile.TemporaryDirectory() as place:
                data, made, log = (Path(place) / name for name in ("data", "made", "log"))
                shutil.copytree(self._stock, data)
                command = [sys.executable, "-m", "online_align", "once", "--json", "--data-dir", str(data)]
                with made.open("w") as out, log.open("w") as err:
                    cut_short = _run([*command, *self._flags], ended, stdout=out, stderr=err)
                if not cut_short and made.read_text().strip() in ("", "null"):
                    raise RuntimeError(f"the learner ended without a round: {log.read_text()[-2000:]}")
                self.rounds += not cut_short


def _run(command: Sequence[str], ended: threading.Event, *, stdout: IO[str], stderr: IO[str]) -> bool:
    """Run it until it ends, or until it is `ended`. Returns whether it was cut short."""
    with subprocess.Popen(command, stdout=stdout, stderr=stderr) as process:
        while process.poll() is None and not ended.wait(_LOOK_S):
            pass
        if process.poll() is not None:
            return False
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return True


def _take_turns(url: str, learner: Learner, given: argparse.Namespace) -> tuple[list[Window], LoadReport]:
    """First one kind begins, then the other, so that what grows in time is not put down to either."""
    windows: list[Window] = []
    reports: list[LoadReport] = []
    ramp_s = _RAMP_S * given.callers
    window_s = given.window_seconds + _LATE_TO_ARRIVE_S
    lasts_s = ramp_s + 2 * _SETTLE_S + given.windows * (2 * window_s + _STOP_S + _SETTLE_S)
    loading = threading.Thread(
        target=lambda: reports.append(load(url, callers=given.callers, seconds=lasts_s, ramp_s=ramp_s)), daemon=True
    )
    loading.start()
    _await_calls(url, given.callers, loading)
    time.sleep(_SETTLE_S)
    for number in range(2 * given.windows):
        learning = number % 4 in (0, 3)
        windows.append(_window(url, learner if learning else None, given.window_seconds))
        note(_sentence(windows[-1]))
    if not loading.is_alive():
        raise RuntimeError("the load ended before the last window: the machine is too busy to measure this")
    loading.join()
    if not reports:
        raise RuntimeError("the load could not be held")
    note(f"{learner.rounds} rounds were made to the end")
    return windows, reports[0]


def _await_calls(url: str, callers: int, loading: threading.Thread) -> None:
    """Wait until so many are served: a load's process may take long to begin. Its seconds count from then on."""
    while (served := callers_served(url)) < callers:
        if not loading.is_alive():
            raise RuntimeError(f"only {served} of {callers} callers were served")
        time.sleep(_LOOK_S)


def _window(url: str, learner: Learner | None, seconds: float) -> Window:
    answered, late = answered_and_late(url)
    began, spent = time.monotonic(), _children_s()
    with learner.at_work() if learner else contextlib.nullcontext():
        time.sleep(seconds)
        ended = time.monotonic()
        time.sleep(_LATE_TO_ARRIVE_S)
        after, later = answered_and_late(url)
    return Window(
        learning=learner is not None,
        began_s=began,
        ended_s=ended,
        answered=after - answered,
        late=later - late,
        learner_s=_children_s() - spent,
    )


def _children_s() -> float:
    """Processor seconds of the children that have ended. In a window only learners end."""
    times = os.times()
    return times.children_user + times.children_system


def _sentence(window: Window) -> str:
    kind = "with a learner" if window.learning else "without one"
    return f"{kind}: {window.late} of {window.answered} frames late; {window.learner_s:.1f} s of processor time"


def _rows(windows: Sequence[Window], delays: np.ndarray, report: LoadReport) -> list[Row]:
    """`delays` `[N, 2]`: when a step's first frame was due (monotonic seconds), and ms until it was answered."""
    counts, spread = {}, {}
    for learning in (True, False):
        mine = [window for window in windows if window.learning is learning]
        counts[learning] = sum(window.late for window in mine), sum(window.answered for window in mine)
        inside = np.zeros(len(delays), bool)
        for window in mine:
            inside |= (delays[:, 0] >= window.began_s) & (delays[:, 0] < window.ended_s)
        if not inside.any():
            raise RuntimeError("no step was made in a window: is nobody calling?")
        spread[learning] = np.percentile(delays[inside, 1], [50, 99, 99.9])
    (late, answered), (others, among) = counts[True], counts[False]
    remark = f"with {late} of {answered}, without {others} of {among}"
    learned = [window for window in windows if window.learning]
    share = sum(window.learner_s for window in learned) / sum(window.ended_s - window.began_s for window in learned)
    lost = report.frames.dropped + report.frames.skipped + report.frames.missing
    trust = "" if report.client.trustworthy else "the load generator itself was late"
    rows = [
        compare(
            "late_frames_caused", late - others * answered / max(1, among), "frames", better="lower", goal=0,
            remark=remark,
        ),
        compare("frames_lost", lost, "frames", better="lower", goal=0, remark=trust),
        compare("learner_cores", share, "cores", better="higher", remark="what it had of the processor"),
    ]  # fmt: skip
    for name, with_ms, without_ms in zip(("p50", "p99", "p99.9"), spread[True], spread[False], strict=True):
        remark = "from when a step's first frame was due to its answers as Opus"
        rows.append(
            compare(
                f"delay_{name}_ms", float(with_ms), "ms", better="lower", peer=_PEER, peer_value=float(without_ms),
                remark=remark,
            )
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
