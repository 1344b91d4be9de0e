"""What a step takes beside a thread of Python that computes without rest: each hand-over of the lock is a wait.

Part of `benchmarks.frame_step`. The step is the engine's as the tick calls it, with arrays; the peer is the same step
with Python's own switch interval of 5 ms, which the server shortens
(docs/decisions/0086-the-lock-goes-round-sooner.md).
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.report import Row, compare, note
from benchmarks.servers import checkpoint_folder
from server.engine import Engine
from server.generations import SWITCH_S

__all__ = ["beside_python", "lock_rows"]

_PYTHONS_OWN_S: Final = 0.005


def lock_rows(checkpoint: str, width: int, steps: int) -> Iterator[Row]:
    """Measure steps of `width` rows: alone, and beside Python with either interval."""
    engine = Engine.load(checkpoint_folder(checkpoint), slots=width, device="cpu")
    engine.warm_up()
    alone_s = engine.measure_step(width, steps)
    before_s = sys.getswitchinterval()
    try:
        with beside_python():
            taken_ms = [_step_ms(engine, width, steps, interval_s) for interval_s in (SWITCH_S, _PYTHONS_OWN_S)]
    finally:
        sys.setswitchinterval(before_s)
    name = f"step_beside_python_ms_rows_{width}"
    note(f"{name}: {taken_ms[0]:.1f} ms, with Python's interval {taken_ms[1]:.1f} ms; alone {1000 * alone_s:.1f}")
    yield compare(name, taken_ms[0], "ms", better="lower", peer="an interval of 5 ms", peer_value=taken_ms[1])


def _step_ms(engine: Engine, width: int, steps: int, interval_s: float) -> float:
    sys.setswitchinterval(interval_s)
    return 1000 * engine.measure_step(width, steps)


@contextmanager
def beside_python() -> Iterator[None]:
    """Have a thread compute in Python without rest meanwhile."""
    stop = threading.Event()
    thread = threading.Thread(target=_compute, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _compute(stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        for _ in range(1000):
            number = (number * 1103515245 + 12345) % 2147483648
