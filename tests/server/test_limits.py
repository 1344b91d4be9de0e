"""What one address may ask for; and that its neighbours do not notice when it asks for more."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from server.addresses import Addresses, Visitor
from server.errors import ConfigError, TooFastError, TooManyCallsError, TooManyRequestsError
from server.limits import _MOST_ADDRESSES, AddressLimits, Bucket
from tests.server.caller import Caller, calling, voice
from tests.server.live import serving, until
from tests.server.test_auth import ANNA, BERT, ROOT_TOKEN, ask, bearer, refused
from tests.server.test_bad_input import neighbour

SOMEBODY = Visitor(address="203.0.113.7")
FAR = {"X-Forwarded-For": "203.0.113.7"}
FARTHER = {"X-Forwarded-For": "203.0.113.8"}
BEHIND_A_PROXY: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",)}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, *, calls: int = 2, rate: float = 1000.0) -> AddressLimits:
    return AddressLimits(max_calls=calls, bytes_per_s=rate, max_message_bytes=4096, clock=clock)


def test_a_bucket_gives_a_burst_and_then_a_rate() -> None:
    bucket = Bucket(rate=10.0, burst=100.0, now=0.0)
    assert bucket.take(100.0, 0.0)
    assert not bucket.take(1.0, 0.0)
    assert bucket.take(10.0, 1.0)
    assert not bucket.take(1.0, 1.0)
    assert not bucket.is_full(10.9)
    assert bucket.is_full(11.0)
    assert not bucket.take(101.0, 1e9), "never more than the burst"


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 300)), max_size=40))
def test_no_pattern_of_requests_gets_more_than_burst_and_rate(pattern: list[tuple[float, float]]) -> None:
    bucket, now, taken = Bucket(rate=10.0, burst=100.0, now=0.0), 0.0, 0.0
    for wait_s, amount in pattern:
        now += wait_s
        taken += amount if bucket.take(amount, now) else 0.0
        assert taken <= 100.0 + 10.0 * now + 1e-6


def test_bytes_are_counted_by_address_and_come_back_with_time() -> None:
    clock = Clock()
    counted = limits(clock)
    for _ in range(8192 // (768 + 256)):
        counted.message(SOMEBODY, 768)
    with pytest.raises(TooFastError, match="at most 1000 bytes a second"):
        counted.message(SOMEBODY, 768)
    counted.message(Visitor(address="203.0.113.8"), 768)
    clock.now += 1.1
    counted.message(SOMEBODY, 768)


def test_wrong_tokens_are_dear() -> None:
    counted = limits(Clock(), rate=65_536.0)
    for _ in range(8):
        counted.request(SOMEBODY)
        counted.wrong_token(SOMEBODY)
    with pytest.raises(TooManyRequestsError):
        for _ in range(8):
            counted.request(SOMEBODY)


def test_calls_at_once_are_counted_and_given_back() -> None:
    counted = limits(Clock())
    with counted.call(SOMEBODY), counted.call(SOMEBODY):
        with pytest.raises(TooManyCallsError, match="at most 2 at once"), counted.call(SOMEBODY):
            pass
        with counted.call(Visitor(address="203.0.113.8")):
            pass
    with counted.call(SOMEBODY):
        pass
    assert not [address for address, calls in counted._calls.items() if calls]


def test_this_machine_is_not_limited() -> None:
    counted, here = limits(Clock(), calls=1), Visitor(address="127.0.0.1", local=True)
    with counted.call(here), counted.call(here):
        for _ in range(100):
            counted.request(here)
            counted.message(here, 1_000_000)
    assert not counted._buckets


def test_a_million_addresses_need_no_memory_for_ever() -> None:
    clock = Clock()
    counted = limits(clock)
    for number in range(_MOST_ADDRESSES + 500):
        counted.message(Visitor(address=str(number)), 1)
    assert len(counted._buckets) == _MOST_ADDRESSES
    clock.now += 100
    counted.message(SOMEBODY, 1)
    assert list(counted._buckets) == [SOMEBODY.address]


def seen(remote: str, *forwarded: str, trusted: tuple[str, ...] = ("10.0.0.0/8",), **headers: str) -> Visitor:
    named = [("X-Forwarded-For", value) for value in forwarded] + [(k.replace("_", "-"), v) for k, v in headers.items()]
    request = make_mocked_request("GET", "/", headers=named)
    return Addresses(trusted).visitor(request.clone(remote=remote))


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        ("203.0.113.7", (), "203.0.113.7"),
        ("203.0.113.7", ("198.51.100.1",), "203.0.113.7"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("1.1.1.1, 198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("1.1.1.1", "198.51.100.1, 10.0.0.2"), "198.51.100.1"),
        ("10.0.0.1", ("nonsense",), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1, nonsense, 10.0.0.2",), "10.0.0.2"),
        ("10.0.0.1", ("," * 1000,), "10.0.0.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("::ffff:203.0.113.7", (), "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", (), "2001:db8:1:2::/64"),
        ("fe80::1%eth0", (), "fe80::/64"),
        ("", (), "unknown"),
    ],
)
def test_an_address_is_believed_only_from_a_trusted_proxy(
    remote: str, forwarded: tuple[str, ...], address: str
) -> None:
    assert seen(remote, *forwarded).address == address


def test_who_is_on_this_machine() -> None:
    assert seen("127.0.0.1").local
    assert seen("::1").local
    assert not seen("203.0.113.7").local
    assert not seen("127.0.0.1", "198.51.100.1").local, "a proxy that nobody said is to be trusted"
    assert not seen("127.0.0.1", X_Real_IP="198.51.100.1").local
    assert not seen("127.0.0.1", "127.0.0.1", trusted=("127.0.0.1",)).local
    assert seen("10.0.0.1", X_Forwarded_Proto="https").secure
    assert not seen("203.0.113.7", X_Forwarded_Proto="https").secure


def test_a_proxy_that_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="trusted_proxies"):
        Addresses(("proxy.example.org",))


@given(remote=st.text(), forwarded=st.lists(st.text(), max_size=3))
def test_nothing_a_peer_sends_breaks_it(remote: str, forwarded: list[str]) -> None:
    assert seen(remote, *forwarded, trusted=("0.0.0.0/0", "::/0")).address


async def test_an_address_has_so_many_calls_and_no_more(tiny: Path) -> None:
    async with serving(tiny, slots=4, max_calls_per_address=1, **BEHIND_A_PROXY) as live, neighbour(live):
        async with calling(live.url, additional_headers=FAR) as first:
            await first.greeted()
            async with calling(live.url, additional_headers=FAR) as second:
                assert await second.closed() == 4429
                assert second.errors[0].startswith("got one call more from this address; expected at most 1 at once")
            async with calling(live.url, additional_headers=FARTHER) as other:
                await other.greeted()
        await until(lambda: not live.server.limits._calls)
        async with calling(live.url, additional_headers=FAR) as again:
            await again.greeted()
        assert live.count("duologue_admission_rejected_total", reason="too_many") == 1


PEOPLE: dict[str, Any] = {"tokens": f"anna:{ANNA},anna:{BERT}", "admin_token": ROOT_TOKEN, "allow_anonymous": True}
"""Anna has two tokens."""


async def test_a_person_has_so_many_calls_whatever_the_address_or_token(tiny: Path) -> None:
    async with serving(tiny, slots=4, max_calls_per_user=1, **BEHIND_A_PROXY, **PEOPLE) as live, neighbour(live):
        async with calling(live.url, additional_headers=bearer(ANNA)) as first:
            await first.greeted()
            async with calling(live.url, additional_headers=bearer(BERT) | FAR) as second:
                assert await second.closed() == 4429
                sentence = second.errors[0]
                assert sentence.startswith("got one call more with a token of the same person; expected at most 1 at")
                assert sentence.endswith("end another, or ask the operator, who sets max_calls_per_user")
            await first.talk(voice(3))
            async with calling(live.url) as anybody:
                await anybody.greeted()
        await until(lambda: live.server.desk.busy == 1)
        async with calling(live.url, additional_headers=bearer(BERT)) as again:
            await again.greeted()
        assert live.count("duologue_admission_rejected_total", reason="too_many_of_one") == 1


async def test_who_waits_counts_and_an_admin_does_not(tiny: Path) -> None:
    async with (
        serving(tiny, slots=1, max_calls_per_user=1, **PEOPLE) as live,
        calling(live.url, additional_headers=bearer(ROOT_TOKEN)) as first,
        calling(live.url, additional_headers=bearer(ROOT_TOKEN)),
        calling(live.url, additional_headers=bearer(ANNA)) as waiting,
    ):
        await first.greeted()
        await waiting.until(lambda: bool(waiting.notes))
        async with calling(live.url, additional_headers=bearer(ANNA)) as second:
            assert await second.closed() == 4429
        async with calling(live.url, f"?worker_auth_id={ROOT_TOKEN}") as by_query:
            assert await by_query.closed() == 4429, "a query makes nobody an admin"


async def test_a_lost_call_of_one_s_own_makes_room_for_a_new_one(tiny: Path) -> None:
    """Who loses the connection and calls anew without the token has not called twice."""
    async with serving(tiny, slots=4, max_calls_per_user=2, resume_grace_s=20.0, **PEOPLE) as live, neighbour(live):
        lost: list[Caller] = []
        for _ in range(2):
            async with calling(live.url, additional_headers=bearer(ANNA)) as caller:
                await caller.greeted()
                caller.socket.transport.abort()
                lost.append(caller)
            await until(lambda: live.server.desk.parked == len(lost))
        async with calling(live.url, additional_headers=bearer(ANNA)) as anew:
            await anew.greeted()
            assert live.server.desk.parked == 1, "no more of them than need be"
            tokens = [f"?resume_token={caller.session['resume_token']}" for caller in lost]
            async with calling(live.url, tokens[0], additional_headers=bearer(ANNA)) as too_late:
                assert await too_late.closed() == 4410, "the one that was lost first"
            async with calling(live.url, tokens[1], additional_headers=bearer(ANNA)) as back:
                await back.greeted()


@pytest.mark.parametrize("flood", [b"\x04{}" + b" " * 4000, b"\x06", "text"], ids=["long", "tiny", "text"])
async def test_an_address_that_floods_is_sent_away(tiny: Path, flood: bytes | str) -> None:
    settings = BEHIND_A_PROXY | {"max_bytes_per_s_per_address": 16_384, "max_message_bytes": 8192}
    async with serving(tiny, slots=4, **settings) as live, neighbour(live):
        async with calling(live.url, additional_headers=FAR) as caller:
            await caller.greeted()
            with contextlib.suppress(ConnectionClosed):
                for _ in range(2000):
                    await caller.socket.send(flood)
                    await asyncio.sleep(0)
            assert await caller.closed() == 4429
            assert "expected at most 16384 bytes a second" in caller.errors[0]
        await until(lambda: live.count("duologue_sessions_total", end_reason="too_fast") == 1)


@pytest.mark.parametrize(
    "began",
    [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "],
    ids=["nothing", "half a line", "half a head"],
)
async def test_a_connection_that_asks_for_nothing_is_closed(
    tiny: Path, began: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.app._SILENT_S", 0.5)
    async with serving(tiny) as live, neighbour(live):
        host, port = live.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(began)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1):
                    pass
        writer.close()


async def test_an_address_has_so_many_connections_whatever_is_asked_on_them(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another address of the loopback stands for another machine."""
    far = "127.0.0.2"
    monkeypatch.setattr(Addresses, "limited", lambda _self, peer: peer if peer == far else None)
    async with serving(tiny, max_calls_per_address=1) as live, neighbour(live):
        host, port = live.url.removeprefix("http://").split(":")

        async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection(host, int(port), local_addr=(far, 0))

        first = [await connected() for _ in range(4)]
        await until(lambda: live.server.connections._open[far] == 4)
        reader, too_many = await connected()
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1) == b"", "broken off before anything is asked"
        too_many.close()
        for reader, writer in first:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert b" 200 " in await reader.readline(), "those that were there are served"
            writer.close()
        await until(lambda: not live.server.connections._open)
        reader, writer = await connected()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.readline(), "and there is room again"
        writer.close()


def test_which_connections_are_counted() -> None:
    addresses = Addresses(("10.0.0.0/8",))
    for peer in ("127.0.0.1", "::1", "10.1.2.3", "", "nonsense"):
        assert addresses.limited(peer) is None
    assert addresses.limited("203.0.113.7") == "203.0.113.7"
    assert addresses.limited("2001:db8:1:2:3:4:5:6") == "2001:db8:1:2::/64"


async def test_a_body_that_does_not_come_is_not_waited_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.login._PATIENCE_S", 0.2)
    async with serving(tiny, slots=1) as live:
        host, port = live.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\ntoken=")
        async with asyncio.timeout(10):
            assert b" 400 " in await reader.readline()
            writer.close()
            await until(lambda: not [task for task in asyncio.all_tasks() if "RequestHandler.start" in repr(task)])


async def test_an_address_that_asks_too_often_is_told_to_wait(tiny: Path) -> None:
    settings = BEHIND_A_PROXY | {"max_bytes_per_s_per_address": 16_384, "max_message_bytes": 8192}
    async with serving(tiny, **settings) as live, neighbour(live):
        now = time.monotonic()
        live.server.limits._clock = lambda: now  # while it stands still nothing comes back
        statuses = [(await ask(live, "/healthz", headers=FAR))[0] for _ in range(60)]
        assert statuses == [200] * 32 + [429] * 28
        status, sentence = await refused(live, additional_headers=FAR)
        assert (status, "ask again in a few seconds" in sentence) == (429, True)
        assert (await ask(live, "/healthz", headers=FARTHER))[0] == 200
