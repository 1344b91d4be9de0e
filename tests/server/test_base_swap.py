"""Another base model over the real socket: new calls get it, old ones end with theirs, and its memory goes."""

import asyncio
import gc
import json
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server import base_swap
from server.config import ServerConfig
from server.engine import Engine
from server.learner import command_of
from tests.engine.lora import tensors, write_adapter
from tests.server.adapter_files import Shop
from tests.server.caller import calling, voice
from tests.server.live import LiveServer, serving, until
from tests.tiny_checkpoint import write_tiny_checkpoint

ADMIN = {"Authorization": "Bearer an-admin-token-for-tests"}


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with other weights, other recommendations and the same sound."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("other"), seed=9)
    config = json.loads((folder / "config.json").read_text())
    config["lm_gen_config"] |= {"temp_text": 0.3}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def no_collections() -> Iterator[None]:
    """What is freed is freed without the garbage collector: a server's rests for minutes."""
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def serving_two(tiny: Path, **settings: Any) -> AsyncIterator[LiveServer]:
    """A server that can load others."""
    token = ADMIN["Authorization"].split()[1]
    async with serving(tiny, admin_token=token, **settings) as live:
        live.server.base._load = lambda checkpoint, slots: Engine.load(checkpoint, slots=slots, device="cpu")
        yield live


async def put_in(live: LiveServer, checkpoint: Path | str, headers: dict[str, str] = ADMIN) -> tuple[int, str]:
    body = {"checkpoint": str(checkpoint)}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(f"{live.url}/api/base", json=body) as response,
    ):
        return response.status, await response.text()


async def base(live: LiveServer) -> Any:
    return json.loads((await live.get("/api/base"))[1])


async def said_by(checkpoint: Path) -> bytes:
    """What a call of twelve frames hears at a server of its own."""
    async with serving(checkpoint) as live, calling(live.url, "?text_seed=3") as caller:
        await caller.greeted()
        return b"".join(await caller.talk(voice(12)))


async def test_calls_keep_their_model_and_new_ones_get_the_next(tiny: Path, other: Path, no_collections: None) -> None:
    alone = {checkpoint: await said_by(checkpoint) for checkpoint in (tiny, other)}
    assert alone[tiny] != alone[other], "they must differ"
    async with serving_two(tiny, slots=3) as live:
        old_engine = weakref.ref(live.server.scheduler._engine)
        async with calling(live.url, "?text_seed=3") as first:
            await first.greeted()
            await first.talk(voice(12)[:5])
            talking = asyncio.create_task(first.talk(voice(12)[5:], answers=7))
            status, body = await put_in(live, other)
            assert (status, json.loads(body)) == (
                200,
                {"serving": other.name, "loading": None, "finishing": [tiny.name]},
            )
            async with calling(live.url, "?text_seed=3") as second:
                await second.greeted()
                assert b"".join(await second.talk(voice(12))) == alone[other]
                assert {view["model"] for view in await views(live)} == {tiny.name, other.name}
            await talking
            assert b"".join(first.ogg) == alone[tiny]
            assert (await put_in(live, tiny))[0] == 409, "two are enough"
            assert old_engine() is not None
        await live.empty()
        await until(lambda: old_engine() is None)
        assert (await base(live))["finishing"] == []
        assert json.loads((await live.get("/api/info"))[1])["model"]["checkpoint"] == other.name
        assert (await put_in(live, tiny))[0] == 200, "and back again"
        async with calling(live.url, "?text_seed=3") as third:
            await third.greeted()
            assert b"".join(await third.talk(voice(12))) == alone[tiny]


async def views(live: LiveServer) -> Any:
    return json.loads((await live.get("/api/sessions"))[1])["sessions"]


async def test_who_waited_gets_the_new_one_as_it_recommends(tiny: Path, other: Path) -> None:
    async with (
        serving_two(tiny, slots=1) as live,
        calling(live.url) as first,
        calling(live.url, "?text_seed=3&text_topk=7") as waiting,
    ):
        await first.greeted()
        await waiting.until(lambda: bool(waiting.notes))
        assert (await put_in(live, other))[0] == 200
        await first.hang_up()
        await waiting.greeted()
        await waiting.talk(voice(6))
        assert [view["model"] for view in await views(live)] == [other.name]
        assert wishes(live) == [(0.3, 7)]


def wishes(live: LiveServer) -> list[tuple[float, int | None]]:
    parameters = [call.session.parameters.sampling for call in live.server.desk._calls]
    return [(each.text_temperature, each.text_topk) for each in parameters]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_learner_learns_on_the_base_that_serves(tiny: Path, other: Path, tmp_path: Path) -> None:
    """A real child: after a swap it is another one with the new base, after a refused swap it is as it was."""
    config = ServerConfig(data_dir=tmp_path / "data")
    async with serving_two(tiny, data_dir=config.data_dir, learn=True) as live:
        learner = live.server.learner
        learner.become(command_of(config, str(tiny)))
        async with calling(live.url, "?consent=keep,train") as caller:
            await caller.greeted()
            await caller.talk(voice(4))
        await live.empty()
        await until(lambda: learner.pid is not None and learns_on(learner.pid) == str(tiny))
        first = learner.pid
        assert (await put_in(live, tmp_path / "none"))[0] == 422
        await asyncio.sleep(0.2)
        assert learner.pid == first
        assert (await put_in(live, other))[0] == 200
        await until(lambda: learner.pid is not None and learner.pid != first and learns_on(learner.pid) == str(other))


def learns_on(pid: int) -> str:
    """The base model in a process's command line; empty while it is not yet that program, or no longer there."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return words[words.index("--checkpoint") + 1] if "online_align" in words else ""


async def test_what_cannot_serve_changes_nothing(tiny: Path, tiny_24k: Path, tmp_path: Path) -> None:
    async with serving_two(tiny) as live, calling(live.url) as caller:
        await caller.greeted()
        for checkpoint, status, why in (
            (tmp_path / "none", 422, "no folder"),
            (tiny_24k, 409, "at 24000 Hz"),
        ):
            got, sentence = await put_in(live, checkpoint)
            assert (got, why in sentence) == (status, True), sentence
        assert (await put_in(live, tiny, {}))[0] == 401
        await caller.talk(voice(4))
        assert await base(live) == {"serving": tiny.name, "loading": None, "finishing": []}


async def test_one_that_breaks_while_it_is_made_ready_changes_nothing(
    tiny: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_two(tiny) as live, calling(live.url) as caller:
        await caller.greeted()

        def fail(_self: Engine, frames: int = 4) -> None:
            raise MemoryError("no room for it")

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "warm_up", fail)
            status, sentence = await put_in(live, other)
        assert (status, "MemoryError while it was made ready: no room for it" in sentence) == (409, True), sentence
        assert gc.isenabled()
        await caller.talk(voice(4))
        assert await base(live) == {"serving": tiny.name, "loading": None, "finishing": []}
        assert (await put_in(live, other))[0] == 200, "the next one may come"


async def test_one_for_which_the_tick_has_no_time_is_never_put_in(
    tiny: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that does not end for long: the swap is given up, the tick goes on as before when it comes to it."""
    async with serving_two(tiny) as live, calling(live.url) as caller:
        await caller.greeted()
        go_on = threading.Event()

        def stand_still() -> None:
            go_on.wait(60.0)

        live.server.scheduler._command(stand_still)
        with monkeypatch.context() as impatient:
            impatient.setattr(base_swap, "_OBEY_S", 0.3)
            status, sentence = await put_in(live, other)
        go_on.set()
        assert (status, "has not ended for 0.3 s" in sentence) == (409, True), sentence
        await caller.talk(voice(4))
        assert await base(live) == {"serving": tiny.name, "loading": None, "finishing": []}
        assert (await put_in(live, other))[0] == 200


async def test_a_rollback_reaches_calls_with_the_old_model_too(tiny: Path, other: Path, tmp_path: Path) -> None:
    """Both models have the same adapter's id: to the one it belongs, to the other it is refused."""
    data_dir = tmp_path / "data"
    (tmp_path / "files").mkdir()
    store = await asyncio.to_thread(Shop, data_dir, tiny, tmp_path / "files")
    await asyncio.to_thread(store.live, "first", seed=1)
    async with serving_two(tiny, slots=2, data_dir=data_dir, canary_share=0.0) as live:
        async with calling(live.url) as caller:
            await caller.greeted()
            assert caller.session["adapter"] == "first"
            assert (await put_in(live, other))[0] == 200
            async with calling(live.url) as second:
                await second.greeted()
                assert second.session["adapter"] is None, "it is an adapter of the other model"
            assert [view["adapter"] for view in await views(live)][:1] == ["first"]
            store.registry.roll_back("first", reason="test")
            await until(lambda: [call.session.adapter for call in live.server.desk._calls] == [""])
            await caller.talk(voice(4))
        await live.empty()
        folder = data_dir / "adapters" / "second"
        await asyncio.to_thread(lambda: write_adapter(folder, other, tensors(other, seed=2)))
        store.enter("second", folder, checkpoint=other.name)
        for _ in range(2):
            store.registry.promote("second", reason="test")
        await until(lambda: live.server.adapters.plan.live is not None)
        async with calling(live.url) as third:
            await third.greeted()
            assert third.session["adapter"] == "second"
    store.close()
