"""Whatever arrives at the door, nothing breaks: no exception escapes, no 500, and somebody else's call goes on.

Bytes are sent by hand over real sockets, because every client library would refuse to send half of them.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server import protocol
from server.errors import ParameterError
from server.parameters import read_parameters
from tests.server.caller import calling, voice
from tests.server.live import LiveServer, serving
from tests.server.test_auth import CLOSED
from tests.server.test_bad_input import neighbour

NAMES = ("text_temperature", "text_topk", "pad_mult", "text_seed", "audio_seed", "consent", "resume_token", "email")
HEADERS = (
    *("Host", "Origin", "Authorization", "Cookie", "X-Forwarded-For", "X-Forwarded-Proto", "Content-Type"),
    *("Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key"),
)
PATHS = ("/", "/api/chat", "/api/info", "/api/login", "/api/sessions", "/metrics", "/static/..%2f", "//", "/%00", "*")
PIECES = (
    "Bearer ",
    "duologue=",
    "a.b",
    "https://",
    "websocket",
    "Upgrade",
    "chunked",
    "13",
    "127.0.0.1",
    ",",
    "=",
    ";",
)

values = st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=6).map("".join)
requests = st.tuples(
    st.sampled_from(("GET", "HEAD", "POST", "PUT", "OPTIONS", "BREW")),
    st.sampled_from(PATHS),
    st.text(max_size=20),
    st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=6),
    st.binary(max_size=40),
)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(st.dictionaries(st.sampled_from(NAMES), st.text() | st.integers().map(str) | st.floats().map(str)))
def test_a_query_is_understood_or_refused(query: Mapping[str, str]) -> None:
    with contextlib.suppress(ParameterError):
        read_parameters(query)


@unhurried
@given(st.binary() | st.text().map(str.encode))
@example(b'\x04{"type":"\xff"}')
@example(b"\x04" + b"[" * 100_000)
@example(b'\x04{"type":"playback","played_ms":1e999}')
def test_a_message_is_understood_or_nothing(message: bytes) -> None:
    _, body = protocol.split(message)
    protocol.read_metadata(body)


def answer(live: LiveServer, sent: bytes) -> bytes:
    """Send bytes and give what comes back until the other side has had enough."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=2) as connection, contextlib.suppress(OSError):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))
    return b""


def knock_on(live: LiveServer) -> None:
    @quick
    @given(requests)
    def knock(request: tuple[str, str, str, list[tuple[str, str]], bytes]) -> None:
        method, path, query, headers, body = request
        head = f"{method} {path}?{query} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
        said = answer(live, head.encode() + b"\r\n" + body)
        for status in re.findall(rb"^HTTP/1\.1 (\d+)", said, re.MULTILINE):
            assert int(status) < 500, said[:500]

    knock()


@pytest.mark.parametrize("settings_", [{}, CLOSED], ids=["open", "closed"])
async def test_no_request_breaks_the_server(
    tiny: Path, settings_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tiny, slots=1, **settings_) as live:
        await asyncio.to_thread(knock_on, live)
        assert (await live.get("/healthz"))[0] == 200
    wrong = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert not [message for message in wrong if "Error handling request" not in message]


ODD_NOTES = (
    b'{"type":"\xff"}',
    b"[" * 50_000,
    b'{"type":"playback","played_ms":-1e308}',
    b'{"type":"playback","played_ms":1e308}',
    b'{"type":"feedback","value":"up","t":-1e308}',
    b'{"type":"feedback","value":"sideways"}',
    b'{"type":"session","id":"mine"}',
    b'{"type":"consent","keep":1,"train":2}',
    b"null",
    b'"\\ud800"',
)


async def test_no_message_breaks_a_call_that_sends_it_or_its_neighbour_s(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tiny) as live, neighbour(live), calling(live.url) as caller:
        await caller.greeted()
        for note in ODD_NOTES:
            await caller.send(4, note)
        for kind in range(256):
            if kind != 1:
                await caller.send(kind, b"\xff\x00")
        await caller.socket.send("\x00" * 1000)
        await caller.talk(voice(4))
        assert not caller.errors
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
