"""Signing in on the page: a cookie for a token, what it opens, and when it no longer does."""

import asyncio
import base64
import json
from collections.abc import Mapping
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp
from hypothesis import given
from hypothesis import strategies as st

from server.cookies import COOKIE, CookieJar
from server.secret import ServerSecret
from tests.server.caller import calling, voice
from tests.server.live import LiveServer, serving
from tests.server.test_auth import ANNA, BERT, CLOSED, ROOT_TOKEN, ask, refused, user_hashes


async def sign_in(
    live: LiveServer,
    token: str = ANNA,
    *,
    path: str = "/api/login",
    headers: Mapping[str, str] | None = None,
    **body: Any,
) -> tuple[int, str, "Morsel[str] | None"]:
    """Gives the status, the body, and the cookie that was set."""
    method = "POST" if body or path == "/api/login" else "GET"
    given = body or ({"json": {"token": token}} if method == "POST" else {})
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client,
        client.request(method, live.url + path, headers=headers, allow_redirects=False, **given) as response,
    ):
        set_cookie: SimpleCookie = SimpleCookie(response.headers.get("Set-Cookie", ""))
        return response.status, await response.text(), set_cookie.get(COOKIE)


def with_cookie(value: str) -> dict[str, str]:
    return {"Cookie": f"theme=dark; {COOKIE}={value}"}


async def test_a_token_becomes_a_cookie_that_lets_its_holder_call(tiny: Path) -> None:
    async with serving(tiny, **CLOSED) as live:
        status, body, cookie = await sign_in(live)
        assert status == 200
        assert cookie is not None
        about = json.loads(body)
        assert (about["name"], about["role"], about["holds_s"]) == ("anna", "caller", 604_800.0)
        assert about["user"] == live.server.secret.user_hash("anna")
        assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["max-age"]) == (
            True,
            "Lax",
            "/",
            "604800",
        )
        assert not cookie["secure"], "over plain HTTP a browser would not keep it"
        assert ANNA not in cookie.value + body
        own = with_cookie(cookie.value) | {"Origin": live.url}
        async with calling(live.url, additional_headers=own) as page:
            await page.greeted()
            await page.talk(voice(2))
            assert user_hashes(live) == {about["user"]}
        foreign = with_cookie(cookie.value) | {"Origin": "https://evil.example"}
        assert (await refused(live, additional_headers=foreign))[0] == 403
        assert (await ask(live, "/api/info", headers=with_cookie(cookie.value)))[0] == 200
        assert (await ask(live, "/metrics", headers=with_cookie(cookie.value)))[0] == 403


async def test_an_admin_s_cookie_changes_things_from_this_server_s_own_page_alone(tiny: Path) -> None:
    async with serving(tiny, slots=1, **CLOSED) as live:
        _, _, cookie = await sign_in(live, ROOT_TOKEN)
        assert cookie is not None
        own, foreign = {"Origin": live.url}, {"Origin": "https://evil.example"}
        shown = with_cookie(cookie.value)
        for origin, expected in ((own, 404), (foreign, 403)):
            assert (await ask(live, "/api/not-there", method="POST", headers=shown | origin))[0] == expected
        assert (await ask(live, "/api/login", method="POST", headers=foreign, json={"token": ANNA}))[0] == 403


async def test_a_wrong_token_gives_no_cookie_and_is_not_repeated(tiny: Path) -> None:
    async with serving(tiny, slots=1, **CLOSED) as live:
        for path in ("/api/login", "/?token=somebody-else"):
            status, sentence, cookie = await sign_in(live, "somebody-elses-token", path=path)
            assert (status, cookie) == (401, None)
            assert "somebody" not in sentence


BAD_BODIES: tuple[dict[str, Any], ...] = (
    {"data": b""},
    {"data": b"{"},
    {"data": b"\xff"},
    {"data": {"other": "x"}},
    {"data": b"token=%ff%fe", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    {"data": b"token=x" * 10_000},
    {"json": {"token": 3}},
    {"json": []},
)


async def test_a_body_without_a_token_is_refused_with_a_sentence(shared: LiveServer) -> None:
    for body in BAD_BODIES:
        status, sentence, cookie = await sign_in(shared, **body)
        assert status in (400, 401, 413), body
        assert cookie is None
        assert status == 413 or sentence.startswith("got "), body


async def test_a_form_and_a_link_lead_to_the_page_without_the_token(tiny: Path) -> None:
    async with serving(tiny, slots=1, **CLOSED) as live:
        by_form: dict[str, Any] = {"data": {"token": ANNA}}
        for given in (await sign_in(live, **by_form), await sign_in(live, path=f"/?token={ANNA}")):
            status, _, cookie = given
            assert (status, cookie is not None) == (303, True)
        status, page = await ask(live, "/")
        assert (status, 'action="/api/login"' in page) == (200, True)
        status, _, cookie = await sign_in(live, path="/api/logout", data=b"")
        assert status == 204
        assert cookie is not None
        assert cookie.value == ""


async def test_a_cookie_is_secure_where_the_browser_came_over_tls(tiny: Path, tmp_path: Path) -> None:
    behind = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    for proxies, expected in ((("127.0.0.1",), True), ((), False)):
        async with serving(tiny, slots=1, trusted_proxies=proxies, **CLOSED) as live:
            _, _, cookie = await sign_in(live, headers=behind)
            assert cookie is not None
            assert bool(cookie["secure"]) is expected


async def test_a_cookie_goes_with_its_token(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"anna:{ANNA}\nanna:{BERT}\n")
    async with serving(tiny, slots=1, token_file=file) as live:
        _, _, first = await sign_in(live, ANNA)
        _, _, second = await sign_in(live, BERT)
        assert first is not None
        assert second is not None
        file.write_text(f"anna:{BERT}\n")
        await asyncio.to_thread(live.server.reload)
        assert (await ask(live, "/api/info", headers=with_cookie(first.value)))[0] == 401
        assert (await ask(live, "/api/info", headers=with_cookie(second.value)))[0] == 200


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_cookie_runs_out_and_outlives_a_restart_with_the_secret(tmp_path: Path) -> None:
    clock, secret = Clock(), ServerSecret(tmp_path)
    cookie = CookieJar(secret, login_s=60.0, clock=clock).make("0123")
    assert CookieJar(ServerSecret(tmp_path), login_s=60.0, clock=clock).read(cookie) is None, "another secret"
    secret.keep()
    again = CookieJar(ServerSecret(tmp_path), login_s=60.0, clock=clock)
    assert again.read(cookie) == "0123"
    clock.now += 59.0
    assert again.read(cookie) == "0123"
    clock.now += 1.0
    assert again.read(cookie) is None


def test_no_bit_of_a_cookie_can_be_changed(tmp_path: Path) -> None:
    jar = CookieJar(ServerSecret(tmp_path), login_s=60.0)
    cookie = jar.make("0123")
    body, _, seal = cookie.partition(".")
    plain = bytearray(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    for bit in range(8 * len(plain)):
        plain[bit // 8] ^= 1 << bit % 8
        assert jar.read(base64.urlsafe_b64encode(plain).rstrip(b"=").decode() + "." + seal) is None
        plain[bit // 8] ^= 1 << bit % 8
    assert jar.read(cookie) == "0123"
    assert jar.read(body) is None
    assert jar.read(cookie + "A" * 2000) is None
    assert jar.make("0123") != cookie


@given(st.text() | st.text("abcXYZ019-_=."))
def test_no_cookie_breaks_it(value: str) -> None:
    assert CookieJar(ServerSecret(Path("/nowhere")), login_s=60.0).read(value) is None
