"""What may not happen on the event loop: a callback that computes for long, a blocking call, the engine."""

import asyncio
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

LONGEST_CPU_S: Final = 0.1
"""Time of the thread itself, not of the clock: another program's load does not make a test fail."""

_TESTS: Final = str(Path(__file__).parents[1])


class _Clock(threading.local):
    """CPU time of the present thread, without what its garbage collections took."""

    def __init__(self) -> None:
        self._began = 0.0
        self._collected = 0.0

    def time(self) -> float:
        return time.thread_time() - self._collected

    def on_collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self._collected += time.thread_time() - self._began


class LoopGuard:
    """Collects `faults`, as sentences. The test that forgives one clears them."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._clock = _Clock()

    @contextmanager
    def knowing_collections(self) -> Iterator[None]:
        """Inside, the garbage collector's time does not count: a test process holds far more than a server."""
        gc.callbacks.append(self._clock.on_collection)
        try:
            yield
        finally:
            gc.callbacks.remove(self._clock.on_collection)

    def watch(self, run: Callable[[asyncio.Handle], None]) -> Callable[[asyncio.Handle], None]:
        """Wrap `asyncio.Handle._run`."""

        @functools.wraps(run)
        def watched(handle: asyncio.Handle) -> None:
            task = getattr(getattr(handle, "_callback", None), "__self__", None)
            what = repr(task if isinstance(task, asyncio.Task) else handle)
            before = self._clock.time()
            run(handle)
            spent = self._clock.time() - before
            serves = threading.current_thread() is threading.main_thread()  # the engine's thread rehearses in a loop
            if spent > LONGEST_CPU_S and serves and not _is_a_tests(task):
                self.faults.append(f"{what} computed for {spent:.3f} s on the event loop")

        return watched

    def forbid(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that must not be called where an event loop runs."""

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if asyncio._get_running_loop() is not None:
                self.faults.append(f"{name} was called on the event loop")
            return function(*args, **kwargs)

        return checked


def _is_a_tests(task: object) -> bool:
    """Whether a task is a test itself, or a caller in one: those may compute what they send and compare."""
    code = getattr(task.get_coro(), "cr_code", None) if isinstance(task, asyncio.Task) else None
    return code is not None and code.co_filename.startswith(_TESTS)
