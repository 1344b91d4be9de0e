"""Adapters that a server cannot use, over the real socket: refused once, explained, never heard, in nobody's way."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from online_align.__main__ import main
from server.engine.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from server.journal import schema
from server.journal.adapter_records import BY_SERVER
from server.metrics import SwapResult
from tests.server.adapter_files import Shop
from tests.server.live import LiveServer, until
from tests.server.swaps import adapter_files, look, new_call, page, post, serving_from, store

__all__ = ["adapter_files", "store"]


@pytest.mark.parametrize("spoil", ["cut", "changed", "gone", "its scaling", "its rank"])
async def test_a_bad_file_is_refused_once_and_never_speaks(tiny: Path, store: Shop, spoil: str) -> None:
    store.live("first", seed=1)
    async with serving_from(store, tiny) as live:
        weights = store.stage("bad", seed=2) / ADAPTER_WEIGHTS
        content = bytearray(weights.read_bytes())
        config = weights.with_name(ADAPTER_CONFIG)
        if spoil == "gone":
            weights.unlink()
        elif spoil == "its scaling":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_scaling": 100.0}))
        elif spoil == "its rank":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_rank": 4}))
        else:
            content[-40] ^= 0x40
            weights.write_bytes(content[:-30] if spoil == "cut" else content)
        status, body = await post(live, "/api/adapters/bad/promote")
        assert (status, json.loads(body)["adapter"]["ready"]) == (200, False), body
        status, body = await post(live, "/api/adapters/bad/promote")
        assert status == 409, body
        assert "a server refuses its files" in body
        assert store.registry.get("first").state == "live", "it speaks after the server's next start, too"
        for _ in range(3):
            await look(live)
        assert await new_call(live) == "first"
        listed = {each["id"]: each for each in (await page(live))["adapters"]}
        assert "expected" in listed["bad"]["problem"]
        assert not listed["bad"]["ready"]
        shown = (await page(live, "/api/adapters/bad"))["verdicts"]
        (refusal,) = [each["reason"] for each in shown if not each["passed"]]
        assert "refuses its files" in refusal
        assert not spoil.startswith("its") or "config.json with SHA-256" in refusal
        verdicts = store.registry.verdicts("bad")
        assert [each.passed for each in verdicts if "refuses" in each.reason] == [False], "said once"
        assert live.count("duologue_swap_total", result=SwapResult.REFUSED) == 1


async def test_the_command_line_tells_what_a_server_has_made_of_it(
    tiny: Path, store: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    async def said(what: str, name: str) -> str:
        arguments = ["adapters", "--data-dir", str(store.data_dir), what, name]
        assert await asyncio.to_thread(main, arguments) == 0
        return capsys.readouterr().out

    store.stage("first", seed=1)
    (store.stage("bad", seed=2) / ADAPTER_WEIGHTS).write_bytes(b"none")
    async with serving_from(store, tiny, canary_share=1.0) as live:
        assert "no server has looked at it" in await said("show", "first")
        assert "no server is known to have read it" in await said("promote", "first")
        await until(lambda: live.server.adapters.plan.canary is not None)
        assert await new_call(live, "?consent=keep") == "first"
        kept = select(schema.sessions.c.id)
        await until(lambda: bool(store.scalars(kept)))
        assert "a server has read it: the last kept call with it began" in await said("show", "first")
        await said("promote", "first")
        await said("promote", "bad")
        await until(lambda: bool(store.registry.refusal("bad")))
        assert "\na server refuses its files: got adapter" in await said("show", "bad")


@pytest.mark.parametrize("broken", [("third",), ("second", "third"), ("first", "second", "third")])
async def test_what_was_live_and_cannot_be_read_at_the_start_gives_way_to_the_last_good_one(
    tiny: Path, store: Shop, broken: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Where none is good the base model speaks, and the table is left alone: its files may come back."""
    folders = {name: store.live(name, seed=seed) for seed, name in enumerate(("first", "second", "third"), 1)}
    for name in broken:
        weights = folders[name] / ADAPTER_WEIGHTS
        content = bytearray(weights.read_bytes())
        content[-40] ^= 0x40
        weights.write_bytes(content)
    good = next((name for name in ("third", "second", "first") if name not in broken), None)
    async with serving_from(store, tiny) as live:
        assert await new_call(live) == good
        for _ in range(3):
            await look(live)
        assert live.server.adapters.problem == ""
        assert live.count("duologue_swap_rollback_total") == (len(broken) if good else 0)
    states = {name: str(store.registry.get(name).state) for name in folders}
    if good is None:
        assert states == {"first": "retired", "second": "retired", "third": "live"}
        return
    before = {name: "retired" for name in folders if name not in broken}
    assert states == before | dict.fromkeys(broken, "rolled_back") | {good: "live"}
    for name in broken:
        said = store.registry.verdicts(name)[-1]
        assert (said.passed, said.figures) == (False, BY_SERVER)
        assert "a server refuses its files" in said.reason
        assert f"adapter {name} is taken back" in caplog.text


async def in_a_moment(live: LiveServer, do: Callable[[], object]) -> None:
    """So that the server does not look at the registry meanwhile."""

    def done() -> None:
        with live.server.adapters._lock:
            do()

    await asyncio.to_thread(done)


async def test_one_made_live_before_any_server_read_it_gives_way_when_it_cannot_be(tiny: Path, store: Shop) -> None:
    """As `adapters promote` twice in a moment does."""
    store.live("first", seed=1)
    async with serving_from(store, tiny) as live:
        weights = store.stage("bad", seed=2) / ADAPTER_WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-30])
        await in_a_moment(live, lambda: [store.registry.promote("bad", reason="test") for _ in range(2)])
        await until(lambda: store.registry.get("bad").state == "rolled_back")
        await look(live)
        assert await new_call(live) == "first"
    live_row = store.registry.live()
    assert live_row is not None
    assert live_row.id == "first"


async def test_what_nobody_thought_of_does_not_stand_in_the_way_of_a_rollback(
    tiny: Path, store: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.live("first", seed=1)
    async with serving_from(store, tiny) as live:
        assert await new_call(live) == "first"

        def fail(*_: object, **__: object) -> int:
            raise MemoryError("a file like no other")

        monkeypatch.setattr(live.server.scheduler._engine, "load_adapter", fail)
        await in_a_moment(live, lambda: store.live("odd", seed=2))
        await until(lambda: store.registry.get("odd").state == "rolled_back")
        await look(live)
        listed = {each["id"]: each for each in (await page(live))["adapters"]}
        assert listed["odd"]["problem"] == "MemoryError: a file like no other"
        assert live.server.adapters.problem == ""
        assert await new_call(live) == "first"
        store.registry.roll_back("first", reason="test")
        await look(live)
        assert await new_call(live) is None


async def test_one_made_for_another_model_is_not_blamed_for_it(tiny: Path, store: Shop, tiny_24k: Path) -> None:
    folder = store.stage("other", seed=1, checkpoint="another-model")
    store.registry.promote("other", reason="test")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"lora_rank": 500}))
    async with serving_from(store, tiny, canary_share=1.0) as live:
        assert await new_call(live) is None
        (listed,) = (await page(live))["adapters"]
        assert "lora_rank = 500" in listed["problem"]
        assert all(each.passed for each in store.registry.verdicts("other"))
