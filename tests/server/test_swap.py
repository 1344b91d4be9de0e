"""Adapters over the real socket: who hears which, when a call changes to another, and what is never heard."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from server.adapter_plan import hears_canary
from server.engine import Engine
from server.metrics import SwapResult
from tests.server.adapter_files import Shop
from tests.server.caller import FRAME, Caller, Samples, calling, voice
from tests.server.live import LiveServer, serving, until
from tests.server.swaps import (
    adapter_files,
    adapter_of,
    look,
    new_call,
    page,
    post,
    serving_from,
    speaking_now,
    store,
    taken,
)

__all__ = ["adapter_files", "store"]


def silence(frames: int) -> list[Samples]:
    return [np.zeros(FRAME, np.float32)] * frames


class Remembers(Engine):
    """A real engine that notes, for every step, which adapter its first slot had."""

    numbers: list[int] = []  # noqa: RUF012 - one engine to a test

    def step(self, pcm: Any, active: Any) -> Any:
        if active[0]:
            self.numbers.append(self._adapter_of[0])
        return super().step(pcm, active)


async def test_without_a_journal_there_are_none_and_none_is_made(tiny: Path, tmp_path: Path) -> None:
    async with serving(tiny, data_dir=tmp_path / "data") as live:
        assert (await page(live))["adapters"] == []
        assert await new_call(live) is None
        assert live.server.adapters.problem == ""
    assert not (tmp_path / "data").exists()


async def test_what_was_live_before_the_start_is_live_at_once_and_is_heard(tiny: Path, store: Shop) -> None:
    store.live("first", seed=1)
    said = {}
    for name, settings in {"first": {}, "": {"canary_share": 0.0}}.items():
        if not name:
            store.registry.roll_back("first", reason="test")
        async with serving_from(store, tiny, **settings) as live, calling(live.url, "?text_seed=1") as caller:
            await caller.greeted()
            assert caller.session["adapter"] == (name or None)
            assert (await page(live, "/api/info"))["adapter"] == (name or None)
            assert await adapter_of(live) == [name]
            said[name] = b"".join(await caller.talk(voice(12)))
    assert said["first"] != said[""], "it must change what is said"


async def test_a_call_keeps_its_version_and_the_next_one_has_the_new(tiny: Path, store: Shop) -> None:
    store.live("first", seed=1)
    async with serving_from(store, tiny) as live, calling(live.url) as caller:
        await caller.greeted()
        store.live("second", seed=2)
        await taken(live, "second")  # by itself, within a second
        await caller.talk(silence(20))
        assert await adapter_of(live) == ["first"]
        async with calling(live.url) as other:
            await other.greeted()
            assert other.session["adapter"] == "second"
            assert await adapter_of(live) == ["first", "second"]
        listed = {each["id"]: each for each in (await page(live))["adapters"]}
        assert (listed["first"]["state"], listed["first"]["calls"]) == ("retired", 1)
        assert listed["second"]["state"] == "live"
        assert live.count("duologue_swap_total", result=SwapResult.FLIPPED) == 1


async def test_with_swap_live_it_changes_in_silence_and_not_before(tiny: Path, store: Shop) -> None:
    store.live("first", seed=1)
    async with serving_from(store, tiny, slots=1, engine=Remembers, swap_live=True, max_speed=1000.0) as live:
        Remembers.numbers = []
        live.server.listening.watch_silence(frozenset, lambda _sessions: None)  # nobody listens for now
        async with calling(live.url) as caller:
            await caller.greeted()
            await caller.talk(voice(4))
            store.live("second", seed=2)
            await taken(live, "second")
            await caller.talk(voice(4, seed=1), answers=4)
            assert await adapter_of(live) == ["first"], "somebody speaks"
            live.server.scheduler._on_silence([call.session for call in live.server.desk._calls])
            await caller.talk(voice(4, seed=2), answers=4)
            assert await adapter_of(live) == ["second"]
        assert Remembers.numbers == sorted(Remembers.numbers), "one change, between two steps"
        assert set(Remembers.numbers) == {1, 2}


class Mute(Engine):
    """A real engine whose model makes no sound: the tiny one never stops making some."""

    def step(self, pcm: Any, active: Any) -> Any:
        out = super().step(pcm, active)
        return msgspec.structs.replace(out, pcm=torch.zeros_like(out.pcm))


async def test_silence_is_heard(tiny: Path, store: Shop) -> None:
    """Nobody says anything, so the call changes by itself."""
    store.live("first", seed=1)
    async with serving_from(store, tiny, slots=1, engine=Mute, swap_live=True) as live, calling(live.url) as caller:
        await caller.greeted()
        store.live("second", seed=2)
        await taken(live, "second")
        await caller.talk(silence(4))
        while speaking_now(live) != ["second"]:
            await caller.talk(silence(1), answers=1)


async def test_a_rollback_moves_everybody_in_the_middle_of_a_word(tiny: Path, store: Shop) -> None:
    store.live("first", seed=1)
    store.live("second", seed=2)
    async with serving_from(store, tiny) as live, calling(live.url) as one, calling(live.url) as two:
        await one.greeted()
        await two.greeted()
        talking = [asyncio.create_task(each.talk(voice(40))) for each in (one, two)]
        await one.until(lambda: len(one.ogg) > 3)
        status, body = await post(live, "/api/adapters/second/rollback?reason=it+rambles")
        assert (status, json.loads(body)["adapter"]["state"]) == (200, "rolled_back")
        assert await adapter_of(live) == ["first", "first"], "the one before is live again, at once"
        assert await new_call_while_busy(live) == "first"
        await asyncio.gather(*talking)
        assert live.count("duologue_swap_rollback_total") == 1
        said = (await page(live, "/api/adapters/second"))["verdicts"][-1]
        assert (said["reason"], said["passed"]) == ("it rambles", False)


async def new_call_while_busy(live: LiveServer) -> str:
    """Of the plan: all slots are taken."""
    plan = live.server.adapters.plan
    return plan.live.id if plan.live is not None else ""


async def test_a_rollback_elsewhere_is_followed(tiny: Path, store: Shop) -> None:
    """By the registry alone, as a learner or the command line does it; from live to the base model."""
    store.live("first", seed=1)
    async with serving_from(store, tiny) as live, calling(live.url) as caller:
        await caller.greeted()
        store.registry.roll_back("first", reason="elsewhere")
        await until(lambda: speaking_now(live) == [""])
        await caller.talk(voice(4))
        assert (await page(live, "/api/info"))["adapter"] is None


async def test_four_in_a_row_and_all_of_them_speak(tiny: Path, store: Shop) -> None:
    async with serving_from(store, tiny, slots=6) as live, AsyncExitStack() as calls:
        callers: list[Caller] = []
        for number in range(4):
            store.stage(f"v{number}", seed=1 + number)
            body = ""
            for _ in ("canary", "live"):
                status, body = await post(live, f"/api/adapters/v{number}/promote")
                assert status == 200, body
            assert json.loads(body)["adapter"]["ready"], "an answer means that it is there"
            callers.append(await calls.enter_async_context(calling(live.url)))
            await callers[-1].greeted()
        heard = await asyncio.gather(*(caller.talk(voice(10)) for caller in callers))
        assert await adapter_of(live) == ["v0", "v1", "v2", "v3"]
        assert len({b"".join(each) for each in heard}) == 4
        store.live("v4", seed=5)
        await until(lambda: live.server.adapters.plan.crowded)
        assert (await page(live))["waiting_for_room"], "there is none for a fifth while all four speak"
        await callers[1].hang_up()
        await taken(live, "v4")
        assert await new_call_beside(live) == "v4"


async def new_call_beside(live: LiveServer) -> str | None:
    async with calling(live.url) as caller:
        await caller.greeted()
        heard: str | None = caller.session["adapter"]
        return heard


async def test_a_canary_is_for_some_users_and_always_the_same(tiny: Path, store: Shop) -> None:
    store.live("first", seed=1)
    store.canary("second", seed=2)
    users = {name: f"token-of-{name}-0123456789" for name in ("ann", "bob", "cy", "di")}
    tokens = ",".join(f"{name}:{token}" for name, token in users.items())
    async with serving_from(store, tiny, canary_share=0.5, tokens=tokens) as live:
        secret = live.server.secret
        for name, token in users.items():
            wanted = "second" if hears_canary(secret.user_hash(name), "second", 0.5) else "first"
            for _ in range(2):
                async with calling(live.url, f"?worker_auth_id={token}") as caller:
                    await caller.greeted()
                    assert caller.session["adapter"] == wanted


def test_the_share_is_kept_and_every_canary_has_other_users() -> None:
    users = [f"user-{number}" for number in range(4000)]
    first = {user for user in users if hears_canary(user, "a", 0.1)}
    second = {user for user in users if hears_canary(user, "b", 0.1)}
    assert 320 < len(first) < 480
    assert len(first & second) < len(first) / 4
    assert first == {user for user in users if hears_canary(user, "a", 0.1)}
    assert first < {user for user in users if hears_canary(user, "a", 0.2)}, "a larger share loses nobody"
    assert not any(hears_canary(user, "a", 0.0) for user in users)
    assert all(hears_canary(user, "a", 1.0) for user in users)


async def test_a_call_that_comes_back_has_its_version(tiny: Path, store: Shop) -> None:
    store.live("first", seed=1)
    async with serving_from(store, tiny, resume_grace_s=30.0) as live, calling(live.url) as lost:
        await lost.greeted()
        await lost.talk(voice(4))
        lost.socket.transport.abort()
        await until(lambda: live.server.desk.parked == 1)
        store.live("second", seed=2)
        await taken(live, "second")
        async with calling(live.url, f"?resume_token={lost.session['resume_token']}") as back:
            await back.greeted()
            assert back.session["adapter"] == "first"
            await back.talk(voice(4), answers=4)


async def test_a_restart_keeps_what_was_live(tiny: Path, store: Shop) -> None:
    async with serving_from(store, tiny) as live:
        store.stage("first", seed=1)
        for _ in ("canary", "live"):
            assert (await post(live, "/api/adapters/first/promote"))[0] == 200
        assert await new_call(live) == "first"
    async with serving_from(store, tiny) as live:
        assert await new_call(live) == "first"


async def test_places_are_free_again_when_nobody_uses_them(tiny: Path, store: Shop) -> None:
    async with serving_from(store, tiny) as live:
        for number in range(7):
            store.live(f"v{number}", seed=1 + number % 3)
            await taken(live, f"v{number}")
        await look(live)
        engine = live.server.scheduler._engine
        assert {info.name for info in engine.adapters.values()} == {"v5", "v6"}, "and the one before, for a rollback"


async def test_only_an_admin_moves_anything(tiny: Path, store: Shop) -> None:
    store.stage("first", seed=1)
    async with serving_from(store, tiny) as live:
        for path in ("/api/adapters/first/promote", "/api/adapters/first/rollback"):
            assert (await post(live, path, token=""))[0] == 401
            assert (await post(live, path, token="somebody-elses-token"))[0] in (401, 403)
        assert (await post(live, "/api/adapters/none/promote"))[0] == 404
        status, sentence = await post(live, "/api/adapters/first/rollback")
        assert (status, "expected" in sentence) == (409, True)
        assert store.registry.get("first").state == "staged"
    async with serving(tiny, data_dir=store.data_dir) as live:
        status, sentence = await post(live, "/api/adapters/first/promote")
        assert (status, "admin" in sentence) == (403, True)


async def test_no_verdict_no_promotion(tiny: Path, store: Shop) -> None:
    store.stage("first", seed=1, judged=False)
    async with serving_from(store, tiny) as live:
        status, sentence = await post(live, "/api/adapters/first/promote")
        assert (status, "without a gate verdict" in sentence) == (409, True)
        assert await new_call(live) is None


async def test_a_registry_that_cannot_be_read_leaves_everything_as_it_is(tiny: Path, store: Shop) -> None:
    store.live("first", seed=1)
    async with serving_from(store, tiny) as live:
        database = live.server.adapters._database
        assert database is not None
        with database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE adapters RENAME TO hidden")
        await look(live)
        assert "no such table" in live.server.adapters.problem
        assert (await live.get("/api/adapters"))[0] == 503
        assert await new_call(live) == "first"
        with database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO adapters")
        await look(live)
        assert live.server.adapters.problem == ""
