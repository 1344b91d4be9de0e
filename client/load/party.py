"""All callers of a load, from the first who calls to the last who hangs up, in a loop of their own."""

import asyncio
import random
import time
from typing import Final

import msgspec

from client.load.caller import Caller, Habits
from client.load.clock import LateLoop
from client.load.figures import Outcome
from client.load.script import Script
from client.load.server_metrics import metrics_url, read_metrics
from client.sound import FRAME_S

__all__ = ["Plan", "run_party"]

_SETTLE_S: Final = 1.0
_LAST_WORDS_S: Final = 15.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A load: who calls, for how long, and how they leave. `seconds` include `ramp_s`, in which callers begin."""

    habits: Habits
    callers: int
    seconds: float
    ramp_s: float
    seed: int
    jitter_s: float


def run_party(plan: Plan, script: Script) -> Outcome:
    """Hold the load. Blocks for `plan.seconds` and little more, and raises nothing for what callers meet."""
    with asyncio.Runner(loop_factory=LateLoop) as runner:
        return runner.run(_party(plan, script))


async def _party(plan: Plan, script: Script) -> Outcome:
    loop = asyncio.get_running_loop()
    cpu_before_s = time.process_time()
    began_at = loop.time()
    until = began_at + plan.seconds
    chance = random.Random(plan.seed)
    callers = [
        Caller(n, habits=plan.habits, script=script, seed=plan.seed, probe=n == 0, until=until)
        for n in range(plan.callers)
    ]
    # Spread over the ramp, each at a phase of its own within the 80 ms.
    begins = [began_at + plan.ramp_s * n / plan.callers + chance.uniform(0, FRAME_S) for n in range(plan.callers)]
    tasks = [asyncio.create_task(caller.live(at)) for caller, at in zip(callers, begins, strict=True)]
    measured_from = began_at + min(plan.ramp_s + _SETTLE_S, plan.seconds / 2)
    url = metrics_url(plan.habits.url)
    await asyncio.sleep(measured_from - loop.time())
    before = await asyncio.to_thread(read_metrics, url, plan.habits.credentials)
    await asyncio.sleep(until - loop.time())
    after = await asyncio.to_thread(read_metrics, url, plan.habits.credentials)
    cpu_s = time.process_time() - cpu_before_s
    _, unfinished = await asyncio.wait(tasks, timeout=_LAST_WORDS_S)
    for task in unfinished:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return Outcome(
        url=plan.habits.url,
        seed=plan.seed,
        jitter_s=plan.jitter_s,
        callers=plan.callers,
        began_at=began_at,
        measured_from=measured_from,
        ended_at=until,
        cpu_s=cpu_s,
        calls=[call for caller in callers for call in caller.calls],
        before=before,
        after=after,
    )
