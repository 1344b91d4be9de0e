"""Pages of other people's may not call, whatever browser shows them; pages of one's own and programs may."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigError, ForbiddenError
from server.origins import Origins
from tests.server.caller import calling, voice
from tests.server.live import LiveServer, serving
from tests.server.test_auth import ANNA, PROM, ask, refused

Shared = dict[str, str]

ELSEWHERE = "https://talk.example.org"


def allowed(host: str, origin: str | None, *, only_here: bool = False, allow: tuple[str, ...] = ()) -> bool:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    try:
        Origins(allow, only_here=only_here).check(make_mocked_request("GET", "/api/chat", headers=headers))
    except ForbiddenError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("talk.example.org", None, True),
        ("talk.example.org", "https://talk.example.org", True),
        ("talk.example.org:443", "https://talk.example.org", True),
        ("talk.example.org", "https://TALK.example.org:443", True),
        ("talk.example.org:8998", "http://talk.example.org:8998", True),
        ("[::1]:8998", "http://[::1]:8998", True),
        ("talk.example.org", "https://evil.example", False),
        ("talk.example.org:8998", "http://talk.example.org", False),
        ("talk.example.org", "https://talk.example.org.evil.example", False),
        ("talk.example.org", "https://eviltalk.example.org", False),
        ("talk.example.org", "null", False),
        ("talk.example.org", "", False),
        ("talk.example.org", "file://", False),
        ("talk.example.org", "chrome-extension://talk.example.org", False),
        ("", "https://", False),
        ("x" * 300, "https://" + "x" * 300, False),
    ],
)
def test_a_page_of_the_same_host_and_port_may(host: str, origin: str | None, expected: bool) -> None:
    assert allowed(host, origin) is expected


def test_pages_that_the_operator_allows_may() -> None:
    assert allowed("127.0.0.1:8998", ELSEWHERE, allow=(ELSEWHERE + "/",))
    assert allowed("127.0.0.1:8998", ELSEWHERE, allow=("HTTPS://talk.example.org:443",))
    assert not allowed("127.0.0.1:8998", "http://talk.example.org", allow=(ELSEWHERE,))
    assert allowed("127.0.0.1:8998", "https://anything.example", allow=("*",))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8998", True),
        ("localhost:9000", True),
        ("[::1]", True),
        ("", True),
        ("evil.example:8998", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1", False),
        ("127.0.0.1:8998, evil.example", False),
    ],
)
def test_a_server_that_asks_nobody_answers_only_to_its_own_machine_s_names(host: str, expected: bool) -> None:
    """A page whose name was pointed at 127.0.0.1 sends its own name as host and origin."""
    assert allowed(host, None, only_here=True) is expected
    assert allowed("talk.example.org", ELSEWHERE, only_here=True, allow=(ELSEWHERE,))


def test_that_all_pages_may_call_lets_none_of_them_change_things() -> None:
    def may_post(origin: str, *allow: str) -> bool:
        headers = {"Host": "127.0.0.1:8998", "Origin": origin}
        try:
            Origins(allow, only_here=False).check(make_mocked_request("POST", "/api/adapters/x/rollback", headers))
        except ForbiddenError:
            return False
        return True

    assert may_post("http://127.0.0.1:8998", "*")
    assert may_post(ELSEWHERE, ELSEWHERE)
    assert not may_post("http://127.0.0.1:3000", "*"), "of the same site, so that the cookie would go along"
    assert not may_post("null", "*")


@pytest.mark.parametrize("text", ["talk.example.org", "ftp://x", "https://x/path", "https://", "null", ""])
def test_what_is_no_origin_is_refused_as_a_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="allow_origin"):
        Origins((text,), only_here=False)


@given(host=st.text(), origin=st.none() | st.text(), only_here=st.booleans())
def test_no_header_breaks_it(host: str, origin: str | None, only_here: bool) -> None:
    if allowed(host, origin, only_here=only_here) and origin is not None:
        assert host.strip().lower().partition(":")[0] in origin.lower()


async def test_a_foreign_page_is_turned_away_while_somebody_talks(shared: LiveServer) -> None:
    frames = voice(12)
    async with calling(shared.url) as neighbour:
        await neighbour.greeted()
        await neighbour.talk(frames[:4])
        status, sentence = await refused(shared, additional_headers={"Origin": ELSEWHERE})
        assert (status, sentence.partition(";")[0]) == (403, f"got a request from a page of {ELSEWHERE!r}")
        assert "--allow-origin" in sentence
        rebound: dict[str, Any] = {"headers": {"Host": "evil.example", "Origin": "http://evil.example"}}
        assert (await ask(shared, "/api/sessions", **rebound))[0] == 403
        assert (await ask(shared, "/metrics", headers={"Host": "evil.example"}))[0] == 403
        own = {"Origin": shared.url}
        assert (await ask(shared, "/api/info", headers=own))[0] == 200
        assert len(await neighbour.talk(frames[4:], answers=8)) == 11
        assert not [note for note in neighbour.notes if note["type"] == "stats"]
    async with calling(shared.url, additional_headers=own) as page:
        await page.greeted()
    assert shared.count("duologue_admission_rejected_total", reason="forbidden") == 1


async def answer(live: LiveServer, path: str, origin: str, method: str = "GET", **headers: str) -> tuple[int, Shared]:
    """What a browser looks at before it lets a page of `origin` see an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()} | {"Origin": origin}
    async with aiohttp.ClientSession() as client, client.request(method, live.url + path, headers=named) as response:
        shown = {name: value for name, value in response.headers.items() if name.startswith("Access-Control-Allow-")}
        return response.status, {name.removeprefix("Access-Control-Allow-"): value for name, value in shown.items()}


ASKS_FIRST = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "authorization"}


async def test_a_page_of_an_allowed_origin_reads_what_it_needs_and_nothing_of_the_operator_s(tiny: Path) -> None:
    """As browsers do it: a question before a request with a token, then the request; the cookie never goes along."""
    settings: dict[str, Any] = {"tokens": f"anna:{ANNA},prom:{PROM}:watch", "allow_origin": (ELSEWHERE,)}
    async with serving(tiny, slots=1, **settings) as live:
        status, allowed = await answer(live, "/api/info", ELSEWHERE, "OPTIONS", **ASKS_FIRST)
        assert (status, allowed.pop("Origin")) == (204, ELSEWHERE)
        assert allowed == {"Methods": "GET, HEAD", "Headers": "Authorization"}, "and no credentials"
        for token, got in ((ANNA, 200), ("nobody-0123456789", 401)):
            bearer = f"Bearer {token}"
            assert await answer(live, "/api/info", ELSEWHERE, Authorization=bearer) == (got, {"Origin": ELSEWHERE})
        assert await answer(live, "/readyz", ELSEWHERE) == (200, {"Origin": ELSEWHERE})
        for path in ("/metrics", "/api/sessions", "/api/adapters", "/api/base", "/api/login"):
            status, allowed = await answer(live, path, ELSEWHERE, "OPTIONS", **ASKS_FIRST)
            assert (status in (401, 403, 405), allowed) == (True, {}), path
        assert await answer(live, "/metrics", ELSEWHERE, Authorization=f"Bearer {PROM}") == (200, {})
        for foreign in ("https://evil.example", "null", "http://talk.example.org"):
            assert await answer(live, "/api/info", foreign, "OPTIONS", **ASKS_FIRST) == (403, {})
            assert await answer(live, "/api/info", foreign) == (403, {})
        async with calling(live.url, f"?worker_auth_id={ANNA}", additional_headers={"Origin": ELSEWHERE}) as page:
            await page.greeted()
            await page.send(4, b'{"type":"feedback","value":"up"}')
            await page.talk(voice(3))
            assert live.count("duologue_messages_ignored_total", kind="metadata") == 0, "feedback goes by the call"


async def test_without_an_allowed_origin_no_page_from_elsewhere_reads_anything(shared: LiveServer) -> None:
    assert await answer(shared, "/api/info", ELSEWHERE) == (403, {})
    assert await answer(shared, "/api/info", shared.url) == (200, {})
    assert (await answer(shared, "/api/info", shared.url, "OPTIONS", **ASKS_FIRST))[0] == 403


async def test_pages_of_any_origin_read_without_who_they_are(tiny: Path) -> None:
    async with serving(tiny, slots=1, allow_origin=("*",)) as live:
        assert await answer(live, "/api/info", "https://anything.example") == (200, {"Origin": "*"})
