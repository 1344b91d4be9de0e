"""Start, readiness, failure, drain: inside one process, and as the operator's program with a real SIGTERM."""

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from server.engine import Engine, FrameOutput, SamplingParams
from server.errors import DrainingError, GoingAwayError, RefusalError, ServerFailedError
from server.generations import SWITCH_S
from server.metrics import EndReason
from server.session import ModelInfo
from server.wire import ChatSocket
from tests.server.caller import Caller, calling, voice
from tests.server.live import LiveServer, serving, until

ROOT = Path(__file__).parents[2]


async def test_health_and_info_of_a_ready_server(tiny: Path) -> None:
    async with serving(tiny, slots=3) as live:
        assert await live.get("/healthz") == (200, '{"alive": true}')
        assert await live.get("/readyz") == (200, '{"state": "ready"}')
        status, body = await live.get("/api/info")
        info = json.loads(body)
        assert status == 200
        assert info["model"] == {"checkpoint": tiny.name, "device": "cpu", "work": "native", "cache_dtype": "fp32"}
        assert str(tiny.parent) not in body, "where it lies is the operator's business"
        assert info["slots"] == {"total": 3, "busy": 0, "parked": 0, "waiting": 0}
        assert (info["adapter"], info["sample_rate"], info["frame_ms"]) == (None, 24000, 80)
        assert info["model_sample_rate"] == 16000
        assert {"duologue", "moshi", "torch", "sphn", "aiohttp", "python"} <= set(info["versions"])


async def test_who_may_watch_is_told_why_a_fallback_serves(tiny: Path) -> None:
    class Slow(Engine):
        fallback = "the kernels disagree"

    async with serving(tiny, engine=Slow) as live:
        _, body = await live.get("/api/info")
        assert json.loads(body)["model"]["fallback"] == "the kernels disagree"


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [("mini", "mini"), ("hf:owner/name", "hf:owner/name"), ("/srv/secret/model/", "model"), ("../model", "model")],
)
def test_a_model_is_called_by_its_folder_without_the_path(checkpoint: str, name: str) -> None:
    model = ModelInfo(
        checkpoint=checkpoint,
        device="cpu",
        slots=1,
        sample_rate=16000,
        frame_size=1280,
        frame_rate=12.5,
        codebooks=17,
        model_codebooks=8,
        tokenizer=None,
        silent_tokens=frozenset(),
        recommended_sampling=SamplingParams(),
    )
    assert model.name == name


async def test_a_garbage_collection_does_not_go_through_the_model(tiny: Path) -> None:
    gc.unfreeze()
    async with serving(tiny):
        assert gc.get_freeze_count() > len(gc.get_objects()), "most of what is there is there for good"


class SlowToLoad(Engine):
    """Loads when it is told to."""

    go = asyncio.Event()

    @classmethod
    def load(cls, *args: Any, **options: Any) -> Any:
        asyncio.run(asyncio.wait_for(_seen(), 20))
        return super().load(*args, **options)


async def _seen() -> None:
    await until(SlowToLoad.go.is_set)


async def test_threads_hand_the_interpreters_lock_over_sooner_than_by_default(tiny: Path) -> None:
    by_default_s = 0.005
    sys.setswitchinterval(by_default_s)
    try:
        async with serving(tiny):
            assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
            assert by_default_s / 2 > SWITCH_S
    finally:
        sys.setswitchinterval(by_default_s)


async def test_the_port_is_open_and_callers_are_told_while_the_model_loads(tiny: Path) -> None:
    SlowToLoad.go.clear()
    async with serving(tiny, engine=SlowToLoad, ready=False) as live:
        assert (await live.get("/healthz"))[0] == 200
        assert await live.get("/readyz") == (503, '{"state": "loading"}')
        assert json.loads((await live.get("/api/info"))[1])["model"] is None
        async with calling(live.url) as caller:
            assert await caller.closed() == 4429
            assert "while the model loads" in caller.errors[0]
        SlowToLoad.go.set()
        await until(lambda: live.server.scheduler.health == "ready")
        async with calling(live.url) as caller:
            await caller.greeted()


class BreaksLater(Engine):
    """A real engine that raises at every step once it is `broken`."""

    broken = False

    def step(self, pcm: Any, active: Any) -> FrameOutput:
        if BreaksLater.broken:
            raise RuntimeError("out of memory")
        return super().step(pcm, active)


@pytest.fixture
def breaking() -> Iterator[type[BreaksLater]]:
    yield BreaksLater
    BreaksLater.broken = False


async def _break(live: LiveServer, callers: int = 3) -> list[Caller]:
    """So many callers, one after the other, say a frame that ends their call. Gives them as they were left."""
    BreaksLater.broken = True
    left = []
    for _ in range(callers):
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.send(1, caller.encode(voice(1)[0]))
            assert await caller.closed() == 1011
            left.append(caller)
    return left


async def test_a_failing_engine_is_told_to_callers_and_ends_the_server(
    tiny: Path, caplog: pytest.LogCaptureFixture, breaking: type[BreaksLater]
) -> None:
    async with serving(tiny, slots=3, engine=breaking) as live:
        async with calling(live.url) as silent:
            await silent.greeted()
            first, second, _ = await _break(live)
            assert "in this call" in first.errors[0]
            assert "in this call" in second.errors[0]
            assert await silent.closed() == 1011
            assert "model had failed" in silent.errors[0]
        assert await live.running is False, "which becomes exit status 1"
        assert live.server.scheduler.problem == "RuntimeError: out of memory"
    assert "out of memory" in caplog.text


async def test_a_checkpoint_that_is_not_there_ends_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path / "nothing", ready=False) as live:
        assert await live.running is False
        assert "no folder" in live.server.scheduler.problem


async def test_drain_lets_calls_finish_and_sends_the_queue_away(tiny: Path) -> None:
    async with serving(tiny, slots=1, drain_s=30.0) as live, calling(live.url) as first:
        await first.greeted()
        await first.talk(voice(3))
        async with calling(live.url) as second:
            await second.until(lambda: bool(second.notes))
            live.server.end()
            assert await second.closed() == 4429
            assert "while the server stops" in second.errors[0]
        assert await live.get("/readyz") == (503, '{"state": "draining"}')
        assert (await live.get("/healthz"))[0] == 200
        async with calling(live.url) as third:
            assert await third.closed() == 4429
        await first.talk(voice(5), answers=5)
        assert not live.running.done()
        await first.hang_up()
        assert await live.running is True


async def test_calls_that_outlive_the_drain_time_are_ended(tiny: Path) -> None:
    async with serving(tiny, drain_s=0.2) as live, calling(live.url) as caller:
        await caller.greeted()
        live.server.end()
        assert await caller.closed() == 1001
        assert "a call that went on while the server stopped" in caller.errors[0]
        assert await live.running is True


async def test_a_second_signal_does_not_wait_for_calls(tiny: Path) -> None:
    async with serving(tiny, drain_s=30.0) as live, calling(live.url) as caller:
        await caller.greeted()
        live.server.end()
        await until(lambda: live.server.desk.draining)
        live.server.end()
        assert await caller.closed() == 1001
        assert live.count("duologue_sessions_total", end_reason="drained") == 1
        assert await live.running is True


class DeafSocket:
    """Nothing that is sent arrives, and nothing comes."""

    parting = EndReason.LOST

    def __init__(self) -> None:
        self.sending = asyncio.Event()
        self.refusal: RefusalError | None = None

    async def send(self, _message: bytes) -> None:
        self.sending.set()
        await asyncio.Event().wait()

    async def next_message(self) -> None:
        await asyncio.Event().wait()

    async def refuse(self, refusal: RefusalError) -> None:
        self.refusal = refusal


@asynccontextmanager
async def _deaf_call(live: LiveServer) -> AsyncIterator[DeafSocket]:
    """A call in which a message is under way for ever."""
    deaf = DeafSocket()
    call = asyncio.create_task(live.server.desk.serve(cast("ChatSocket", deaf), {}))
    await deaf.sending.wait()
    yield deaf
    await asyncio.wait_for(call, 5)


async def test_a_second_signal_does_not_wait_for_a_caller_who_does_not_read(tiny: Path) -> None:
    async with serving(tiny, drain_s=1000.0) as live, _deaf_call(live) as deaf:
        live.server.end()
        await until(lambda: live.server.desk.draining)
        live.server.end()
        assert await asyncio.wait_for(live.running, 5) is True
        assert isinstance(deaf.refusal, GoingAwayError)


async def test_the_queue_is_sent_away_even_if_it_does_not_read(tiny: Path) -> None:
    async with serving(tiny, slots=1) as live, calling(live.url) as first:
        await first.greeted()
        async with _deaf_call(live) as deaf:
            live.server.end()
        assert isinstance(deaf.refusal, DrainingError)


async def test_a_failing_engine_does_not_wait_for_a_caller_who_does_not_read(
    tiny: Path, breaking: type[BreaksLater]
) -> None:
    async with serving(tiny, slots=3, engine=breaking, drain_s=1000.0) as live:
        async with _deaf_call(live) as deaf:
            await _break(live)
            assert await asyncio.wait_for(live.running, 5) is False
        assert isinstance(deaf.refusal, ServerFailedError)


@asynccontextmanager
async def _program(checkpoint: Path, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`python -m server` as an operator starts it; gives the process and the address it logs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "server", "--checkpoint", str(checkpoint), "--slots", "1", "--port", "0", "--max-speed", "1000"),
        cwd=ROOT,
        env=os.environ | environment,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    log = b""
    try:
        while not (found := re.search(rb"listening on (http://\S+),", log)):
            line = await process.stderr.readline()
            assert line, f"the program ended: {log.decode()}"
            log += line
        yield process, found[1].decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _readiness(url: str, wanted: int) -> None:
    """Ask until the answer is the wanted one: the program tells nobody of its own accord."""
    async with aiohttp.ClientSession() as client:
        while True:
            async with client.get(url + "/readyz") as answer:
                if answer.status == wanted:
                    return
            await asyncio.sleep(0.02)


async def test_sigterm_drains_the_real_program(tiny: Path) -> None:
    """Readiness goes at once and the call goes on; after a second signal it is told to go away."""
    async with _program(tiny, DUOLOGUE_DRAIN_S="60") as (process, url):
        await _readiness(url, 200)
        async with calling(url) as caller:
            await caller.greeted()
            await caller.talk(voice(3))
            process.send_signal(signal.SIGTERM)
            await _readiness(url, 503)
            async with calling(url) as late:
                assert await late.closed() == 4429
            await caller.talk(voice(5), answers=5)
            process.send_signal(signal.SIGTERM)
            assert await caller.closed() == 1001
            assert "while the server stopped" in caller.errors[0]
        assert await process.wait() == 0


def _run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_bad_setting_ends_the_program_with_2_and_a_sentence() -> None:
    done = _run("--slots", "many")
    assert done.returncode == 2
    assert done.stderr == (
        "duologue-server: got slots = 'many' in the flags; expected a number of callers served at once, or auto; "
        "correct slots or leave it out\n"
    )


def test_a_bad_checkpoint_ends_the_program_with_1_and_a_sentence(tmp_path: Path) -> None:
    done = _run("--checkpoint", str(tmp_path / "nothing"), "--port", "0", "--slots", "1")
    assert done.returncode == 1
    assert f"got no folder in {tmp_path / 'nothing'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_neither_torch_nor_a_checkpoint() -> None:
    done = _run("--help")
    assert done.returncode == 0
    assert "--checkpoint" in done.stdout
