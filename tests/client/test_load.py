"""`duologue load` against servers that play a script, and against a real one as a user runs it."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from client.load.caller import Habits
from client.load.figures import summarise
from client.load.party import Plan, run_party
from client.load.report import LoadReport, sentences
from client.load.script import read_script
from server.protocol import FRAME_MS
from tests.client.stage import Script, Stage, answering, silence, staged

QUESTION = Path(__file__).parent.parent / "assets" / "speech" / "demo_2.opus"


async def load(script: Script, *, callers: int = 2, seconds: float = 2.0, **habits: Any) -> LoadReport:
    async with staged(script) as url:
        plan = Plan(
            habits=Habits(**({"url": url + "/api/chat", "call_s": None, "rude": 0.0} | habits)),
            callers=callers,
            seconds=seconds,
            ramp_s=0.2,
            seed=5,
            jitter_s=0.08,
        )
        outcome = await asyncio.to_thread(run_party, plan, read_script([QUESTION]))
    report = summarise(outcome)
    assert "\n".join(sentences(report))
    return report


def slowly(wait_s: float, took_s: list[float], *, model: int = 1) -> Script:
    """A server that answers every frame so much later, in order, and notes how much later that really was."""

    async def script(stage: Stage) -> None:
        await stage.ready()
        late: set[asyncio.Task[None]] = set()

        async def reply(heard_at: float) -> None:
            await asyncio.sleep(wait_s)
            await stage.speak(silence())
            took_s.append(time.monotonic() - heard_at)

        count = 0
        while True:
            await stage.hear()
            if count >= model:
                late.add(asyncio.create_task(reply(time.monotonic())))
            count += 1

    return script


async def test_a_quick_server_adds_next_to_nothing() -> None:
    report = await load(answering(silence))
    assert report.calls.served == report.calls.calls == report.calls.callers == 2
    assert report.model_delay_frames == 1
    assert report.frames.answered == report.frames.sent > 20
    assert report.frames.missing == report.frames.dropped == report.calls.failed == 0
    assert report.server_ticks is None
    assert report.probe is not None
    assert report.probe.disagreements == 0
    assert report.probe.frames_decoded == pytest.approx(24, abs=3)
    assert max(second.callers for second in report.series) == 2


@pytest.mark.parametrize(("wait_s", "model"), [(0.05, 1), (0.12, 1), (0.05, 2)])
async def test_what_a_server_adds_is_told_from_the_models_own_delay(wait_s: float, model: int) -> None:
    """To less than the frame by which a wrong model's delay would differ; more is not known on a busy machine."""
    took_s: list[float] = []
    report = await load(slowly(wait_s, took_s, model=model))
    assert report.model_delay_frames == model
    assert report.delay_ms is not None
    assert report.own_delay_ms is not None
    assert 1000 * wait_s <= report.delay_ms.p50
    assert report.own_delay_ms.p50 < 1000 * max(took_s) + FRAME_MS
    assert report.frames.missing == 0


async def test_losses_come_from_the_servers_own_words() -> None:
    async def script(stage: Stage) -> None:
        await stage.ready()
        for n in range(1000):
            await stage.hear()
            if n == 10:
                await stage.note({"type": "stats", "lag_ms": 0, "dropped_ms": 240, "skipped_ms": 80})
            if n > 10 or 1 <= n < 7:
                await stage.speak(silence())

    report = await load(script, callers=1)
    assert (report.frames.dropped, report.frames.skipped) == (3, 1)
    assert report.frames.missing == 0


async def test_what_is_lost_without_a_word_is_missing() -> None:
    async def script(stage: Stage) -> None:
        await stage.ready()
        for n in range(1000):
            await stage.hear()
            if n < 6 or n > 10:
                await stage.speak(silence())

    # Any reply before the gap that took less than a frame tells the model's delay; five are missing afterwards.
    report = await load(script, callers=1)
    assert report.model_delay_frames == 0
    assert report.frames.missing == 5


async def test_callers_come_back_and_some_leave_without_a_word() -> None:
    codes: list[int | None] = []

    async def script(stage: Stage) -> None:
        try:
            await answering(silence)(stage)
        finally:
            codes.append(await stage.gone())

    report = await load(script, callers=3, seconds=5.0, call_s=0.8, rude=0.5)
    assert report.calls.calls > 6
    assert 0 < report.calls.rude < report.calls.calls
    assert report.calls.failed == 0
    assert codes.count(1000) == report.calls.calls - report.calls.rude
    assert codes.count(1006) == report.calls.rude


async def test_who_has_no_place_is_counted_with_the_reason() -> None:
    async def full(stage: Stage) -> None:
        await stage.note({"type": "queue", "position": 1, "eta_s": 3.0})
        await stage.send(5, b"all slots are taken")
        await stage.close(4429)

    report = await load(full, seconds=1.0)
    assert (report.calls.queued, report.calls.turned_away, report.calls.served, report.calls.failed) == (2, 2, 0, 0)
    assert report.problems == {"all slots are taken (code 4429)": 2}
    assert report.delay_ms is None


async def test_who_waits_for_ever_was_never_served() -> None:
    async def mute(stage: Stage) -> None:
        await stage.gone()

    report = await load(mute, seconds=1.0)
    assert (report.calls.never_served, report.calls.served, report.calls.failed) == (2, 0, 0)


@pytest.mark.parametrize("ending", ["abort", "no_ogg"])
async def test_a_broken_call_is_a_failure_and_nothing_else(ending: str) -> None:
    async def script(stage: Stage) -> None:
        await stage.ready()
        await stage.hear()
        if ending == "abort":
            stage.vanish()
        else:
            await stage.send(1, b"this is no page")
            await stage.gone()

    report = await load(script, seconds=1.5)
    assert report.calls.failed == report.calls.served == 2
    assert len(report.problems) == 1


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client", "load", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_as_a_user_runs_it(server_url: str, tmp_path: Path) -> None:
    """One slot, two callers: the second waits in the queue until the first hangs up."""
    report_file, picture = tmp_path / "report.json", tmp_path / "report.png"
    load = ("--callers", "2", "--seconds", "6", "--call-seconds", "1.5", "--json", report_file, "--picture", picture)
    done = run(QUESTION, "--url", server_url, *load)
    assert done.returncode == 0, done.stderr
    assert "tick, by the server's clock" in done.stdout
    report = json.loads(report_file.read_text())
    assert report["calls"]["queued"] > 0
    assert report["calls"]["failed"] == 0
    assert report["calls"]["served"] >= 2
    assert report["probe"]["disagreements"] == 0
    assert report["server_ticks"]["total"]["count"] == pytest.approx(report["frames"]["answered"], abs=15)
    assert report["frames"]["missing"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_only_this_machine_is_loaded_unless_one_says_so() -> None:
    done = run("--url", "ws://192.0.2.1:8998", "--seconds", "1")
    assert done.returncode == 2
    assert "--yes-load-a-remote-server" in done.stderr


@pytest.mark.parametrize("arguments", [("--callers", "0"), ("--rude", "1.5"), ("--seconds", "nan"), ("no_such.wav",)])
def test_mistakes_are_refused(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert arguments[-1] in done.stderr


def test_nobody_answers() -> None:
    done = run("--url", "ws://127.0.0.1:9", "--seconds", "0.5", "--callers", "1")
    assert done.returncode == 3
    assert "No call was served" in done.stderr


def test_a_load_needs_no_torch() -> None:
    program = (
        "import sys, client.load.command; print(sorted({'torch', 'moshi', 'aiohttp', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
