"""What may not happen on the event loop: a callback that computes for long, a blocking call, the engine."""

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any, Final

LONGEST_CPU_S: Final = 0.1
"""Time of the thread itself, not of the clock: another program's load does not make a test fail."""

TEST_TASK: Final = "the-test-itself"
"""Name of the task a test runs in: it may compute what it compares."""


class LoopGuard:
    """Collects `faults`, as sentences. The test that forgives one clears them."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def watch(self, run: Callable[[asyncio.Handle], None]) -> Callable[[asyncio.Handle], None]:
        """Wrap `asyncio.Handle._run`."""

        @functools.wraps(run)
        def watched(handle: asyncio.Handle) -> None:
            task = getattr(getattr(handle, "_callback", None), "__self__", None)
            what = repr(task if isinstance(task, asyncio.Task) else handle)
            before = time.thread_time()
            run(handle)
            spent = time.thread_time() - before
            if spent > LONGEST_CPU_S and TEST_TASK not in what:
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
