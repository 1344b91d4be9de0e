"""Who may call, watch and change things: at a real server's real socket, with what real clients can send."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from websockets.exceptions import InvalidStatus

from server.auth import Auth, is_loopback
from server.config import ServerConfig
from server.errors import ConfigError
from server.secret import ServerSecret
from server.wire import ChatSocket
from tests.server.caller import Caller, calling, voice
from tests.server.live import LiveServer, serving, until
from tests.server.test_bad_input import neighbour

ANNA = "anna-0123456789-token"
BERT = "bert-0123456789-token"
PROM = "prom-0123456789-token"
ROOT_TOKEN = "root-0123456789-token"
TOKENS = f"anna:{ANNA},bert:{BERT},prom:{PROM}:watch"
CLOSED: dict[str, Any] = {"tokens": TOKENS, "admin_token": ROOT_TOKEN}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def ask(live: LiveServer, path: str, *, method: str = "GET", **options: Any) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client,
        client.request(method, live.url + path, allow_redirects=False, **options) as response,
    ):
        return response.status, await response.text()


def user_hashes(live: LiveServer) -> set[str]:
    return {call.session.user_hash for call in live.server.desk._calls}


@asynccontextmanager
async def undisturbed(live: LiveServer) -> AsyncIterator[None]:
    """Somebody who may talks meanwhile, and loses nothing."""
    async with calling(live.url, additional_headers=bearer(BERT)) as caller:
        await caller.greeted()
        talking = asyncio.create_task(caller.talk(voice(20)))
        yield
        assert len(await talking) == 19
        assert not caller.errors
        assert not [note for note in caller.notes if note["type"] == "stats"]


async def refused(live: LiveServer, query: str = "", **options: Any) -> tuple[int, str]:
    """Call in vain: gives HTTP's status and the sentence."""
    with pytest.raises(InvalidStatus) as caught:
        async with calling(live.url, query, **options):
            pass
    response = caught.value.response
    return response.status_code, (response.body or b"").decode()


async def test_a_call_without_a_token_is_turned_away_before_the_upgrade(tiny: Path) -> None:
    async with serving(tiny, **CLOSED) as live, undisturbed(live):
        status, sentence = await refused(live)
        assert status == 401
        assert sentence.startswith("got a call without a token; expected a token that this server knows; send it as")
        status, sentence = await refused(live, additional_headers=bearer("somebody-elses-token"))
        assert (status, "nobody's" in sentence) == (401, True)
        assert "somebody" not in sentence
        status, _ = await refused(live, "?worker_auth_id=nobody-0123456789")
        assert status == 401
        status, sentence = await refused(live, additional_headers=bearer(PROM))
        assert (status, "figures alone" in sentence) == (403, True)
        assert live.count("duologue_admission_rejected_total", reason="unauthorised") == 3
        assert live.count("duologue_admission_rejected_total", reason="forbidden") == 1


async def test_a_token_in_a_header_lets_its_holder_call(tiny: Path) -> None:
    async with serving(tiny, **CLOSED) as live:
        for scheme in ("Bearer", "bearer", "BEARER "):
            async with calling(live.url, additional_headers={"Authorization": f"{scheme} {ANNA}"}) as caller:
                await caller.greeted()
                await caller.talk(voice(2))


async def test_the_stock_page_s_worker_auth_id_lets_its_holder_call_and_never_change_things(tiny: Path) -> None:
    async with serving(tiny, **CLOSED) as live:
        async with calling(live.url, f"?worker_auth_id={ANNA}&text_temperature=0.7") as caller:
            await caller.greeted()
        async with calling(live.url, f"?worker_auth_id={ROOT_TOKEN}") as caller:
            await caller.greeted()
        assert (await ask(live, f"/api/anything?worker_auth_id={ROOT_TOKEN}", method="POST"))[0] == 401


MAY_READ = {
    "/healthz": (200, 200, 200, 200),
    "/readyz": (200, 200, 200, 200),
    "/": (200, 200, 200, 200),
    "/api/info": (401, 200, 403, 200),
    "/api/sessions": (401, 403, 200, 200),
    "/metrics": (401, 403, 200, 200),
    "/api/not-there-yet": (401, 403, 404, 404),
}
"""What nobody in particular, a caller, a watcher and an admin get."""


async def test_who_may_read_what(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tiny, slots=1, **CLOSED) as live:
        for path, expected in MAY_READ.items():
            shown: list[dict[str, str]] = [{}, bearer(ANNA), bearer(PROM), bearer(ROOT_TOKEN)]
            assert tuple([(await ask(live, path, headers=headers))[0] for headers in shown]) == expected, path
        monkeypatch.setattr(type(live.server.listening), "problem", "the disk at /srv/secret is full")
        assert "secret" not in (await ask(live, "/readyz"))[1], "what is wrong inside is the operator's business"
        assert "secret" in (await ask(live, "/readyz", headers=bearer(PROM)))[1]


async def test_only_an_admin_may_change_things(tiny: Path) -> None:
    async with serving(tiny, slots=1, **CLOSED) as live:
        for headers, status in (({}, 401), (bearer(ANNA), 403), (bearer(PROM), 403), (bearer(ROOT_TOKEN), 404)):
            got, sentence = await ask(live, "/api/adapters/x/promote", method="POST", headers=headers)
            assert got == status, sentence
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            assert (await ask(live, "/api/sessions", method=method))[0] == 401


async def test_without_an_admin_s_token_nobody_may_change_things(tiny: Path) -> None:
    async with serving(tiny, slots=1) as live:
        status, sentence = await ask(live, "/api/adapters/x/promote", method="POST", headers=bearer(ROOT_TOKEN))
        assert status == 403
        assert "--admin-token-file or DUOLOGUE_ADMIN_TOKEN" in sentence


async def test_a_server_of_one_s_own_asks_nobody(tiny: Path) -> None:
    async with serving(tiny) as live:
        for path in ("/api/info", "/api/sessions", "/metrics"):
            assert (await ask(live, path))[0] == 200
        async with calling(live.url, "?worker_auth_id=whatever", additional_headers=bearer("whatever")) as caller:
            await caller.greeted()


async def test_anonymous_callers_beside_known_ones(tiny: Path) -> None:
    async with serving(tiny, allow_anonymous=True, **CLOSED) as live:
        async with calling(live.url) as anybody, calling(live.url, additional_headers=bearer(ANNA)) as anna:
            await anybody.greeted()
            await anna.greeted()
            assert user_hashes(live) == {"", live.server.secret.user_hash("anna")}
        assert (await refused(live, additional_headers=bearer("somebody-elses-token")))[0] == 401
        assert (await ask(live, "/metrics"))[0] == 401


async def test_somebody_is_the_same_with_either_token_and_after_a_restart(tiny: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tokens": f"anna:{ANNA},anna:{BERT}", "data_dir": tmp_path / "data"}
    seen = []
    for token in (ANNA, BERT):
        async with serving(tiny, **settings) as live:
            async with calling(live.url, additional_headers=bearer(token)) as caller:
                await caller.greeted()
                seen.append(user_hashes(live))
            await asyncio.to_thread(live.server.secret.keep)
    assert seen[0] == seen[1]
    assert [len(each) for each in seen[0]] == [64]


async def test_a_call_is_resumed_only_by_whose_it_is(tiny: Path) -> None:
    async with serving(tiny, resume_grace_s=20.0, **CLOSED) as live:
        async with calling(live.url, additional_headers=bearer(ANNA)) as lost:
            await lost.greeted()
            lost.socket.transport.abort()
            await until(lambda: live.server.desk.parked == 1)
            query = f"?resume_token={lost.session['resume_token']}"
        async with calling(live.url, query, additional_headers=bearer(BERT)) as thief:
            assert await thief.closed() == 4410
        async with calling(live.url, query, additional_headers=bearer(ANNA)) as back:
            await back.greeted()


async def test_a_token_file_that_changes_is_followed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.auth._LOOK_EVERY_S", 0.02)
    file = tmp_path / "tokens"
    file.write_text(f"anna:{ANNA}\n")
    async with (
        serving(tiny, token_file=file, drain_s=0.1) as live,
        calling(live.url, additional_headers=bearer(ANNA)) as caller,
    ):
        await caller.greeted()
        file.write_text("anna:oops\n")
        await until(lambda: "the tokens stay as they were: got a token that cannot be one" in caplog.text)
        assert (await ask(live, "/api/info", headers=bearer(ANNA)))[0] == 200
        file.write_text(f"# anna left\nbert:{BERT}\n")
        await until(lambda: live.server.auth._book.find(BERT) is not None)
        assert (await ask(live, "/api/info", headers=bearer(BERT)))[0] == 200
        assert (await ask(live, "/api/info", headers=bearer(ANNA)))[0] == 401


@asynccontextmanager
async def calling_by_cookie(live: LiveServer, token: str) -> AsyncIterator[Caller]:
    """As a browser that has signed in."""
    async with (
        aiohttp.ClientSession() as client,
        client.post(live.url + "/api/login", json={"token": token}) as response,
    ):
        cookie = response.cookies["duologue"].value
    async with calling(live.url, additional_headers={"Cookie": f"duologue={cookie}"}) as caller:
        await caller.greeted()
        yield caller


async def test_calls_end_when_their_token_is_taken_away(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that talk, by a header or a cookie, those that are parked, and nobody else's."""
    monkeypatch.setattr("server.auth._LOOK_EVERY_S", 0.02)
    file = tmp_path / "tokens"
    file.write_text(f"anna:{ANNA}\nbert:{BERT}\n")
    settings: dict[str, Any] = {"slots": 5, "token_file": file, "allow_anonymous": True, "resume_grace_s": 20.0}
    async with (
        serving(tiny, **settings) as live,
        neighbour(live),
        calling(live.url, additional_headers=bearer(BERT)) as bert,
        calling(live.url, additional_headers=bearer(ANNA)) as lost,
        calling(live.url, additional_headers=bearer(ANNA)) as anna,
        calling_by_cookie(live, ANNA) as browser,
    ):
        for caller in (bert, lost, anna, browser):
            await caller.greeted()
        lost.socket.transport.abort()
        await until(lambda: live.server.desk.parked == 1)
        await anna.talk(voice(3))
        file.write_text(f"bert:{BERT}\n")
        for caller in (anna, browser):
            assert await caller.closed() == 4401
            assert caller.errors[-1].startswith("got a call whose token was taken away; expected a token that")
        await until(lambda: live.server.desk.parked == 0)
        assert live.count("duologue_sessions_total", end_reason="unauthorised") == 3
        await bert.talk(voice(3))
        assert not bert.errors


async def test_who_waits_is_sent_away_when_the_token_is_taken_away(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"anna:{ANNA}\nbert:{BERT}\n")
    async with (
        serving(tiny, slots=1, token_file=file) as live,
        undisturbed(live),
        calling(live.url, additional_headers=bearer(ANNA)) as anna,
    ):
        await anna.until(lambda: any(note["type"] == "queue" for note in anna.notes))
        file.write_text(f"bert:{BERT}\n")
        await asyncio.to_thread(live.server.reload)
        assert await anna.closed() == 4401
        assert live.count("duologue_admission_rejected_total", reason="unauthorised") == 1


@pytest.mark.parametrize(
    ("lines", "ends"),
    [
        (f"anna:{BERT}", True),
        (f"bert:{ANNA}", True),
        (f"anna:{ANNA}:watch", True),
        (f"anna:{ANNA}:admin", False),
        (f"# two tokens for an hour\nanna:{BERT}\nanna:{ANNA}", False),
        ("anna:oops", False),
    ],
    ids=["replaced", "somebody else's", "for figures alone", "for more", "one more", "a mistake"],
)
async def test_a_call_goes_on_while_its_token_is_one_of_that_name_s_that_may_call(
    tiny: Path, tmp_path: Path, lines: str, ends: bool
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"anna:{ANNA}")
    async with (
        serving(tiny, slots=1, token_file=file) as live,
        calling(live.url, additional_headers=bearer(ANNA)) as caller,
    ):
        await caller.greeted()
        file.write_text(lines)
        await asyncio.to_thread(live.server.reload)
        if ends:
            assert await caller.closed() == 4401
        else:
            await caller.talk(voice(3))


async def test_a_token_taken_away_in_the_middle_of_the_upgrade_begins_no_call(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"anna:{ANNA}\n")
    upgrade = ChatSocket.open

    async def open_slowly(socket: ChatSocket, request: web.Request) -> bool:
        file.write_text(f"bert:{BERT}\n")
        await asyncio.to_thread(live.server.reload)
        return await upgrade(socket, request)

    async with serving(tiny, slots=1, token_file=file) as live:
        monkeypatch.setattr(ChatSocket, "open", open_slowly)
        async with calling(live.url, additional_headers=bearer(ANNA)) as caller:
            assert await caller.closed() == 4401
        assert not live.open_slots


async def test_a_token_file_that_is_being_written_cuts_nobody_off(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.auth._LOOK_EVERY_S", 0.05)
    file = tmp_path / "tokens"
    file.write_text(f"anna:{ANNA}\n")
    async with (
        serving(tiny, slots=1, token_file=file) as live,
        calling(live.url, additional_headers=bearer(ANNA)) as caller,
    ):
        await caller.greeted()
        for length in range(40):
            file.write_text("#" * length)
            await asyncio.sleep(0.01)
        file.write_text(f"bert:{BERT}\nanna:{ANNA}\n")
        await until(lambda: live.server.auth._book.find(BERT) is not None)
        await caller.talk(voice(3))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "talk.example.org"])
def test_listening_to_others_needs_tokens_or_a_decision(host: str, tmp_path: Path) -> None:
    secret = ServerSecret(tmp_path)
    with pytest.raises(ConfigError, match="--allow-anonymous if everybody there may call"):
        Auth(ServerConfig(host=host), secret)
    assert not Auth(ServerConfig(host=host, allow_anonymous=True), secret).open_house
    assert Auth(ServerConfig(host=host, tokens=TOKENS), secret).callers_need_token


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_what_only_this_machine_reaches(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone
