"""A server whose adapters come from a shop of files, and who asks it and its callers: for tests of swaps."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.server.adapter_files import Shop, made, shop
from tests.server.caller import calling, voice
from tests.server.live import LiveServer, serving

ADMIN = "an-admin-token-for-tests"


@pytest.fixture(scope="session")
def adapter_files(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter-files")
    for seed in range(1, 6):
        made(tiny, folder, seed)
    return folder


@pytest.fixture
def store(tmp_path: Path, tiny: Path, adapter_files: Path) -> Iterator[Shop]:
    with shop(tmp_path / "data", tiny, adapter_files) as opened:
        yield opened


def serving_from(store: Shop, tiny: Path, **settings: Any) -> Any:
    return serving(tiny, data_dir=store.data_dir, admin_token=ADMIN, **({"canary_share": 0.0} | settings))


async def post(live: LiveServer, path: str, token: str = ADMIN) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as client, client.post(live.url + path) as response:
        return response.status, await response.text()


async def page(live: LiveServer, path: str = "/api/adapters") -> Any:
    status, body = await live.get(path)
    assert status == 200, body
    return json.loads(body)


async def adapter_of(live: LiveServer) -> list[str]:
    return [view["adapter"] for view in (await page(live, "/api/sessions"))["sessions"]]


def speaking_now(live: LiveServer) -> list[str]:
    return [call.session.adapter for call in live.server.desk._calls]


async def look(live: LiveServer) -> None:
    """Let the server look at the registry now instead of within a second."""
    await asyncio.to_thread(live.server.adapters.refresh)


async def taken(live: LiveServer, name: str) -> None:
    """Wait until new calls have this one."""
    while (plan := live.server.adapters.plan).live is None or plan.live.id != name:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def new_call(live: LiveServer, query: str = "") -> str | None:
    """What a call that begins now is told that it hears."""
    async with calling(live.url, query) as caller:
        await caller.greeted()
        heard: str | None = caller.session["adapter"]
        await caller.talk(voice(2))
    await live.empty()
    return heard
