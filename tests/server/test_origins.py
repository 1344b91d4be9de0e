"""Pages of other people's may not call, whatever browser shows them; pages of one's own and programs may."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigError, ForbiddenError
from server.origins import Origins
from tests.server.caller import calling, voice
from tests.server.live import LiveServer
from tests.server.test_auth import ask, refused

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
