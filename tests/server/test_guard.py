"""The guard over the event loop must be able to fail."""

import asyncio
import gc
import time
from typing import Any

from tests.server.guard import LoopGuard


def compute() -> None:
    end = time.thread_time() + 0.15
    while time.thread_time() < end:
        pass


async def test_it_sees_a_callback_that_computes_for_long(loop_guard: LoopGuard) -> None:
    asyncio.get_running_loop().call_soon(compute)
    await asyncio.sleep(0.01)
    assert len(loop_guard.faults) == 1
    assert "compute" in loop_guard.faults[0]
    loop_guard.faults.clear()


async def test_it_sees_a_task_that_computes_for_long_and_not_the_tests_own(loop_guard: LoopGuard) -> None:
    compute()  # this test's task
    await asyncio.sleep(0)
    assert not loop_guard.faults
    parts: dict[str, Any] = {}
    exec(compile("async def serve(compute): compute()", "served.py", "exec"), parts)  # in a file that is no test
    await asyncio.create_task(parts["serve"](compute))
    assert len(loop_guard.faults) == 1
    assert "serve()" in loop_guard.faults[0]
    loop_guard.faults.clear()


async def test_it_forgives_the_garbage_collector(loop_guard: LoopGuard) -> None:
    def slow_down(phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            compute()

    gc.callbacks.append(slow_down)
    try:
        asyncio.get_running_loop().call_soon(gc.collect)
        await asyncio.sleep(0.01)
    finally:
        gc.callbacks.remove(slow_down)
    assert not loop_guard.faults


async def test_it_sees_blocking_calls_on_the_loop_and_only_there(loop_guard: LoopGuard) -> None:
    await asyncio.to_thread(time.sleep, 0.001)
    assert not loop_guard.faults
    time.sleep(0.001)  # noqa: ASYNC251 - the fault to be seen
    assert loop_guard.faults == ["time.sleep was called on the event loop"]
    loop_guard.faults.clear()
