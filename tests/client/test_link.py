import asyncio
import time
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import serve

from client import link as link_module
from client.credentials import Credentials
from client.errors import (
    CallLostError,
    ClientError,
    NotAuthorisedError,
    RefusedError,
    ServerBusyError,
    UnreachableError,
)
from client.link import Event, Link, Piece, Sound, chat_url, open_link
from server.protocol import QueuePosition, SessionStart, SignalNotice, Stats
from tests.client.signals import lag_of, speechlike
from tests.client.stage import FRAME, Stage, staged


async def everything(link: Link) -> list[Event]:
    """What comes until nothing has come for a while."""
    events: list[Event] = []
    while True:
        event = await link.receive(0.2)
        if event is None and not events:
            continue
        if event is None:
            return events
        events.append(event)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ws://host:8998", "ws://host:8998/api/chat?a=1"),
        ("http://host/", "ws://host/api/chat?a=1"),
        ("https://host", "wss://host/api/chat?a=1"),
        ("wss://host/other?b=2", "wss://host/other?b=2&a=1"),
        ("ws://[::1]:80", "ws://[::1]:80/api/chat?a=1"),
    ],
)
def test_an_address_is_completed(given: str, expected: str) -> None:
    assert chat_url(given, {"a": "1"}) == expected


@pytest.mark.parametrize("url", ["host:8998", "", "ftp://host", "ws://", "/api/chat"])
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UnreachableError, match=r"ws://127\.0\.0\.1:8998"):
        chat_url(url, {})


async def test_the_call_waits_for_its_slot_and_says_where_it_stands() -> None:
    async def script(stage: Stage) -> None:
        for position in (2, 1):
            await stage.note({"type": "queue", "position": position, "eta_s": 3.5})
            await stage.send(6)
        await stage.ready(id="x", max_speed=2.0)
        await stage.gone()

    places: list[QueuePosition] = []
    async with staged(script) as url, open_link(url, on_queue=places.append) as link:
        assert [place.position for place in places] == [2, 1]
        assert link.max_speed == 1.0, "unknown until told"
        assert isinstance(await link.receive(), SessionStart)
        assert link.max_speed == 2.0


async def test_what_the_client_asks_for_reaches_the_server() -> None:
    seen: dict[str, str] = {}

    async def script(stage: Stage) -> None:
        seen.update(path=stage.path, token=stage.headers["Authorization"])
        await stage.ready()
        seen["code"] = str(await stage.gone())

    async with staged(script) as url, open_link(url, query={"text_topk": "5"}, credentials=Credentials(token="secret")):
        pass
    assert seen == {"path": "/api/chat?text_topk=5", "token": "Bearer secret", "code": "1000"}


async def test_everything_known_is_typed_and_everything_else_ignored() -> None:
    async def script(stage: Stage) -> None:
        await stage.note({"type": "rust server's own", "build_info": {}})
        await stage.send(0, bytes(8))  # the Rust server's handshake has nine bytes
        for junk in ("text frame", b"", b"\x09codes", b"\x03\x01", b"\x04{broken", b"\x06", b"\x01"):
            await stage.send_raw(junk)
        await stage.send(2, " día".encode())
        await stage.send(2, b"\xff")
        await stage.note({"type": "stats", "lag_ms": 80, "dropped_ms": 160, "new_field": 1})
        await stage.speak(np.zeros(FRAME, np.float32))
        await stage.gone()

    async with staged(script) as url, open_link(url) as link:
        first, second, stats, sound = await everything(link)
    assert first == Piece(text=" día")
    assert second == Piece(text="\N{REPLACEMENT CHARACTER}")
    assert stats == Stats(lag_ms=80, dropped_ms=160)
    assert isinstance(sound, Sound)


BELL_AND_TITLE = "\x1b]0;mine\x07"
HOSTILE = f"a{BELL_AND_TITLE}\x1b[2J\x9bb\r\nc\u202ed"
"""Renames the window, rings, empties the screen, begins a line anew and turns the direction of writing."""


async def test_nothing_a_server_says_moves_the_terminal_it_is_shown_on() -> None:
    async def script(stage: Stage) -> None:
        await stage.ready(id=HOSTILE, adapter=HOSTILE)
        await stage.send(2, HOSTILE.encode())
        await stage.note({"type": "signal", "kind": HOSTILE, "t": 1.0, "confidence": 1.0})
        await stage.send(5, HOSTILE.encode())
        await stage.close(4400)

    shown: list[str] = []
    with pytest.raises(RefusedError) as caught:
        async with staged(script) as url, open_link(url) as link:
            while True:
                match await link.receive():
                    case SessionStart() as session:
                        shown += [session.id, str(session.adapter)]
                    case Piece() as piece:
                        shown.append(piece.text)
                    case SignalNotice() as signal:
                        shown.append(signal.kind)
    assert shown == ["a]0;mine[2Jb  cd"] * 4
    assert caught.value.reason == shown[0]
    assert str(caught.value).isprintable()


async def test_sound_arrives_without_the_delay_of_opus() -> None:
    said = speechlike(25 * FRAME)

    async def script(stage: Stage) -> None:
        await stage.ready()
        for start in range(0, len(said), FRAME):
            await stage.speak(said[start : start + FRAME])
        await stage.gone()

    async with staged(script) as url, open_link(url) as link:
        heard = np.concatenate([event.pcm for event in await everything(link) if isinstance(event, Sound)])
    assert len(said) - FRAME < len(heard) < len(said)
    assert abs(lag_of(heard, said)) <= 1


async def test_frames_reach_the_server_in_one_stream() -> None:
    said, heard = speechlike(25 * FRAME), []

    async def script(stage: Stage) -> None:
        await stage.ready()
        while True:
            heard.append(await stage.hear())

    async with staged(script) as url, open_link(url) as link:
        for start in range(0, len(said), FRAME):
            await link.send(said[start : start + FRAME])
    assert [len(frame) for frame in heard] == [FRAME] * 25
    assert lag_of(np.concatenate(heard), said) == pytest.approx(156, abs=1)


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [(4400, RefusedError, 5), (4429, ServerBusyError, 6), (1001, RefusedError, 5), (1011, RefusedError, 5)],
)
@pytest.mark.parametrize("ready", [True, False])
async def test_a_refusal_keeps_the_servers_sentence(
    code: int, kind: type[RefusedError], exit_code: int, ready: bool
) -> None:
    async def script(stage: Stage) -> None:
        if ready:
            await stage.ready()
        await stage.send(5, b"got 7 apples; expected pears")
        await stage.close(code, "shortened")

    with pytest.raises(kind, match="got 7 apples; expected pears") as caught:
        async with staged(script) as url, open_link(url) as link:
            await link.receive()
            await link.receive()
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)


async def test_a_call_whose_token_was_taken_away_is_not_authorised() -> None:
    async def script(stage: Stage) -> None:
        await stage.ready()
        await stage.send(5, b"got a call whose token was taken away")
        await stage.close(4401, "shortened")

    with pytest.raises(NotAuthorisedError, match="The server ended the call: got a call whose token was taken away"):
        async with staged(script) as url, open_link(url) as link:
            await link.receive()
            await link.receive()


async def test_without_a_sentence_the_closing_reason_is_kept() -> None:
    async def script(stage: Stage) -> None:
        await stage.close(1011, "out of memory")

    with pytest.raises(RefusedError, match=r"out of memory .*1011"):
        async with staged(script) as url, open_link(url):
            pass


async def hang_up(stage: Stage) -> None:
    await stage.ready()
    await stage.close(1000)


async def vanish(stage: Stage) -> None:
    await stage.ready()
    stage.vanish()


async def talk_nonsense(stage: Stage) -> None:
    await stage.ready()
    await stage.send(1, b"RIFF is not Ogg, whatever it sounds like" * 3)
    await stage.gone()


@pytest.mark.parametrize(
    ("script", "match"), [(hang_up, "hung up"), (vanish, "broke"), (talk_nonsense, "not Ogg/Opus")]
)
async def test_a_call_that_is_lost_says_how(script: Any, match: str) -> None:
    with pytest.raises(CallLostError, match=match):
        async with staged(script) as url, open_link(url) as link:
            await link.receive()


async def test_sending_to_a_server_that_hung_up_says_so() -> None:
    with pytest.raises(CallLostError, match="hung up"):
        async with staged(hang_up) as url, open_link(url) as link:
            await asyncio.sleep(0.2)
            await link.send(np.zeros(FRAME, np.float32))


async def test_a_server_that_falls_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_DEAD_AFTER_S", 0.2)

    async def script(stage: Stage) -> None:
        await stage.ready()
        await stage.gone()

    async with staged(script) as url, open_link(url) as link:
        with pytest.raises(CallLostError, match="sent nothing"):
            await link.receive()


async def test_pings_alone_keep_a_call_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute of them; the clock jumps, so that no second of this machine's counts."""
    real, jumped_s = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + jumped_s[0])

    async def script(stage: Stage) -> None:
        for _ in range(6):
            jumped_s[0] += 5.0
            await stage.send(6)
            await asyncio.sleep(0.02)
        await stage.ready()
        await stage.gone()

    async with staged(script) as url, open_link(url):
        pass


@pytest.mark.parametrize(
    ("status", "kind"), [(401, NotAuthorisedError), (403, NotAuthorisedError), (404, UnreachableError)]
)
async def test_a_server_that_does_not_upgrade(status: int, kind: type[ClientError]) -> None:
    def refuse(connection: Any, _request: Any) -> Any:
        return connection.respond(HTTPStatus(status), "no")

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(kind, match=str(status)):
            async with open_link(f"ws://127.0.0.1:{port}"):
                pass


async def test_nobody_there(unused_tcp_port: int) -> None:
    with pytest.raises(UnreachableError, match="duologue-server"):
        async with open_link(f"ws://127.0.0.1:{unused_tcp_port}"):
            pass
