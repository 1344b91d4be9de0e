"""What goes wrong for one caller, beside a healthy one that must not notice."""

import ast
import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.engine import Engine, FrameOutput
from server.logs import LogThread
from tests.server.caller import Caller, calling, voice
from tests.server.live import LiveServer, serving, until

ROOT = Path(__file__).parents[2]
FRAMES = 16
SECRET = 7.5
"""A level that no voice here reaches: the first sample of a frame that its engine cannot bear."""


class Delicate(Engine):
    """A real engine that raises, before it moves, at a step with a poisoned row; `transient` times at most."""

    transient = 10**6
    raised = 0

    def step(self, pcm: Any, active: Any) -> FrameOutput:
        if np.any(np.asarray(pcm)[np.asarray(active), 0] == SECRET) and Delicate.raised < Delicate.transient:
            Delicate.raised += 1
            raise RuntimeError("this row is too much")
        return super().step(pcm, active)


def poison(live: LiveServer, caller: Caller) -> None:
    """Make the caller's next frame one that the engine cannot bear: no sound on the wire would do it for sure."""
    session = next(call.session for call in live.server.desk._calls if call.session.id == caller.session["id"])
    feed = session._reader.feed

    def poisoned(ogg: bytes) -> Any:
        for frame in feed(ogg):
            bad = frame.copy()
            bad[0] = SECRET
            yield bad

    session._reader.feed = poisoned  # type: ignore[method-assign]


Heard = tuple[list[bytes], str]


@pytest.fixture
async def alone(tiny: Path) -> Heard:
    """What `undisturbed` hears and reads on a server without anybody else."""
    async with serving(tiny) as live, calling(live.url, "?text_seed=77") as caller:
        await caller.greeted()
        await caller.talk(voice(FRAMES, seed=3))
    return caller.ogg, caller.words


@asynccontextmanager
async def undisturbed(live: LiveServer, alone: Heard) -> AsyncIterator[None]:
    """A caller talks before, during and after the block, and hears exactly what it would hear alone."""
    frames = voice(FRAMES, seed=3)
    async with calling(live.url, "?text_seed=77") as caller:
        await caller.greeted()
        await caller.talk(frames[:6])
        rest = asyncio.create_task(caller.talk(frames[6:], answers=FRAMES - 6))
        yield
        await rest
        assert caller.ogg == alone[0]
        await caller.until(lambda: len(caller.words) >= len(alone[1]))
        assert caller.words == alone[1]
        assert not caller.errors
        assert not [note for note in caller.notes if note.get("dropped_ms") or note.get("skipped_ms")]


@pytest.fixture(autouse=True)
def _fresh_delicacy() -> None:
    Delicate.transient, Delicate.raised = 10**6, 0


async def test_an_exception_ends_only_the_call_that_causes_it(
    tiny: Path, alone: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tiny, engine=Delicate, faults=True) as live, undisturbed(live, alone):
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.talk(voice(3))
            poison(live, caller)
            await caller.send(1, caller.encode(voice(1)[0]))
            assert await caller.closed() == 1011
            assert "an internal error of the model in this call" in caller.errors[0]
        assert live.count("duologue_sessions_total", end_reason="fault") == 1
        async with calling(live.url) as next_caller:
            await next_caller.greeted()
            await next_caller.talk(voice(3))
    assert "this row is too much" in caplog.text


async def test_an_exception_that_does_not_come_back_ends_no_call(tiny: Path, alone: Heard) -> None:
    Delicate.transient = 1
    async with (
        serving(tiny, engine=Delicate, faults=True) as live,
        undisturbed(live, alone),
        calling(live.url) as caller,
    ):
        await caller.greeted()
        await caller.talk(voice(3))
        poison(live, caller)
        await caller.talk(voice(3), answers=3)
        assert Delicate.raised == 1
        assert not caller.errors


async def test_an_engine_that_can_serve_nobody_has_failed(tiny: Path) -> None:
    """Three ticks in a row in which every row raised, alone as well."""
    async with serving(tiny, engine=Delicate, faults=True) as live:
        for turn in range(3):
            assert not live.running.done()
            async with calling(live.url) as caller:
                await caller.greeted()
                poison(live, caller)
                await caller.send(1, caller.encode(voice(1)[0]))
                assert await caller.closed() == 1011
                assert turn == 2 or "in this call" in caller.errors[0]
        assert await live.running is False
        assert live.server.scheduler.problem == "RuntimeError: this row is too much"


class CannotOpen(Engine):
    """A real engine whose slot 1 is broken once the server is ready."""

    ready = False

    def open(self, slot: int, *args: Any, **options: Any) -> int:
        if CannotOpen.ready and slot == 1:
            raise MemoryError("no room for another")
        return super().open(slot, *args, **options)


async def test_a_slot_that_cannot_be_opened_ends_that_call_only(tiny: Path, alone: Heard) -> None:
    CannotOpen.ready = False
    async with serving(tiny, engine=CannotOpen, faults=True) as live:
        CannotOpen.ready = True
        async with undisturbed(live, alone), calling(live.url) as caller:
            assert await caller.closed() == 1011
            assert live.count("duologue_admission_rejected_total", reason="fault") == 1
        CannotOpen.ready = False


async def test_a_caller_who_floods_hurts_only_itself(tiny: Path) -> None:
    """Beside a neighbour at the pace of speech, five times as fast, where twice is allowed."""
    flood = serving(tiny, max_speed=2.0, inbox_ms=400)
    async with flood as live, calling(live.url) as neighbour, calling(live.url) as flooding:
        await asyncio.gather(neighbour.greeted(), flooding.greeted())
        for frame in voice(FRAMES):
            await neighbour.send(1, neighbour.encode(frame))
            for _ in range(5):
                await flooding.send(1, flooding.encode(frame))
            await asyncio.sleep(0.08)
        await neighbour.until(lambda: len(neighbour.ogg) == FRAMES - 1)
        views = {view.id: view for view in live.server.desk.views()}
        assert views[neighbour.session["id"]].skipped_ms == views[neighbour.session["id"]].dropped_ms == 0
        assert views[flooding.session["id"]].skipped_ms > 0
        assert views[flooding.session["id"]].lag_ms <= 400 + 160


async def test_a_flood_as_fast_as_the_network_is_read_slowly(tiny: Path) -> None:
    """Hours of sound in seconds: decoding is everybody's event loop, so TCP has to hold the sender up."""
    async with serving(tiny, max_speed=2.0) as live, calling(live.url) as neighbour, calling(live.url) as flooding:
        await asyncio.gather(neighbour.greeted(), flooding.greeted())
        hour = b"".join(flooding.encode(frame) for frame in voice(100)) * 20
        began = time.monotonic()
        flood = asyncio.create_task(_send_for_ever(flooding, hour))
        for frame in voice(FRAMES):
            await neighbour.send(1, neighbour.encode(frame))
            await asyncio.sleep(0.08)
        await neighbour.until(lambda: len(neighbour.ogg) == FRAMES - 1)
        spent_s = time.monotonic() - began
        flood.cancel()
        views = {view.id: view for view in live.server.desk.views()}
        flooding.socket.transport.abort()  # its goodbye would have to wait behind the flood
        flooded = views[flooding.session["id"]]
        decoded = flooded.heard_frames + flooded.skipped_ms / 80 + flooded.lag_ms / 80
        assert 100 < decoded < 100 + (spent_s + 0.5) * 8 * 12.5
        assert views[neighbour.session["id"]].skipped_ms == views[neighbour.session["id"]].dropped_ms == 0


async def _send_for_ever(caller: Caller, body: bytes) -> None:
    while True:
        await caller.send(1, body)


async def test_a_caller_at_half_speed_is_served_at_half_speed(tiny: Path, alone: Heard) -> None:
    async with serving(tiny) as live, undisturbed(live, alone), calling(live.url) as slow:
        await slow.greeted()
        for count, frame in enumerate(voice(6)):
            await slow.send(1, slow.encode(frame))
            await slow.until(lambda count=count: len(slow.ogg) == count)
            await asyncio.sleep(0.16)
        assert not slow.errors
        assert not [note for note in slow.notes if note["type"] == "stats"], "nothing is late, nothing is lost"


@pytest.mark.parametrize("seconds", [-86_400.0, 86_400.0])
async def test_a_wall_clock_that_jumps_changes_nothing(
    tiny: Path, alone: Heard, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time = time.time
    async with serving(tiny, idle_s=50.0, max_session_s=50.0, resume_grace_s=30.0) as live, undisturbed(live, alone):
        async with calling(live.url) as lost:
            await lost.greeted()
            lost.socket.transport.abort()
            await until(lambda: live.server.desk.parked == 1)
            monkeypatch.setattr(time, "time", lambda: true_time() + seconds)
            await asyncio.sleep(0.3)
            assert live.server.desk.parked == 1
            async with calling(live.url, f"?resume_token={lost.session['resume_token']}") as back:
                await back.greeted()
                await back.talk(voice(3))
        monkeypatch.undo()


OUTLIVES_THE_PROCESS = {"cookies.py", "tls.py"}
"""What these date holds after a restart, so only a wall clock can say until when."""


def test_no_code_of_the_server_reads_the_wall_clock() -> None:
    for path in sorted((ROOT / "server").glob("*.py")):
        if path.name in OUTLIVES_THE_PROCESS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                assert name not in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow"), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == "time"), path


def test_a_log_nobody_reads_makes_nobody_wait() -> None:
    """The pipe is full and stays full: lines are dropped and counted, and the program's end takes a second."""
    import logging

    reader, writer = os.pipe()
    dropped: list[int] = []
    handler = LogThread(writer, on_dropped=lambda: dropped.append(1))
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "x" * 200, (), None)
    began = time.monotonic()
    for _ in range(5000):
        handler.emit(record)
    handler.close()
    assert time.monotonic() - began < 5
    assert len(dropped) > 3000
    os.close(reader)  # which ends the thread
    os.close(writer)


def test_a_log_that_is_read_has_every_line() -> None:
    import logging

    reader, writer = os.pipe()
    handler = LogThread(writer)
    for number in range(50):
        handler.emit(logging.LogRecord("server", logging.INFO, __file__, 1, "line %d", (number,), None))
    handler.close()
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        assert lines.read().decode().split("\n")[:-1] == [f"line {number}" for number in range(50)]


async def test_the_program_goes_on_when_nobody_reads_its_log(tiny: Path) -> None:
    """As on a full disk: standard error is a pipe that is never read, and there is far more to log than it holds."""
    reader, writer = os.pipe()
    process = subprocess.Popen(  # noqa: ASYNC220 - asyncio's own would read the pipe
        [sys.executable, "-m", "server", "--checkpoint", str(tiny), "--slots", "1", "--port", "0"],
        cwd=ROOT,
        env=os.environ | {"DUOLOGUE_LOG_LEVEL": "debug"},
        stderr=writer,
    )
    os.close(writer)
    try:
        said = b""
        while not (found := re.search(rb"listening on (http://\S+),", said)):
            said += await asyncio.to_thread(os.read, reader, 512)
        url = found[1].decode()
        await asyncio.to_thread(_until_ready, url)
        async with calling(url) as caller:
            await caller.greeted()
            for _ in range(6000):  # a line each: half a megabyte, where a pipe holds 64 KiB
                await caller.send(7)
            await caller.talk(voice(6))
            text = (await asyncio.to_thread(_body, url + "/metrics")).decode()
            dropped = re.search(r"^duologue_log_lines_dropped_total (\S+)$", text, re.MULTILINE)
            assert dropped is not None
            assert float(dropped[1]) > 1000
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        os.close(reader)


def _body(url: str) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
        return bytes(answer.read())


def _until_ready(url: str) -> None:
    while True:
        try:
            _body(url + "/readyz")
        except OSError:
            time.sleep(0.05)
        else:
            return
