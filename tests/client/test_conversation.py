"""A conversation over connections that break: against scripted servers of the bare protocol, on real sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import serve

from client import conversation as conversation_module
from client import microphone as microphone_module
from client import sound_card as sound_card_module
from client.call_state import CallState, Connection
from client.conversation import Conversation
from client.echo import NoCancellation
from client.errors import CallLostError, HungUpError, RefusedError, ServerBusyError, UnreachableError
from client.jitter import JitterBuffer
from client.link import Event, Link, Piece
from client.local_server import free_port
from client.microphone import Microphone
from client.sound_card import FileCard
from client.speaker import Speaker
from tests.client.signals import speechlike
from tests.client.stage import FRAME, Script, Stage, answering, silence, staged


class Talk:
    """A conversation on a card of silence, four times as fast as real time."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        self.state = CallState()
        self.jitter = JitterBuffer(clock=clock)
        self.speaker = Speaker(self.jitter)
        self.microphone = Microphone(NoCancellation(), self.speaker.reference, frame_s=0.02)
        self.conversation = Conversation(
            url, microphone=self.microphone, jitter=self.jitter, state=self.state, frame_s=0.02, **options
        )
        self.card = FileCard(None, speed=4)
        self.running = asyncio.create_task(self.conversation.run())

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self.running.done():
                self.running.result()
            await asyncio.sleep(0.01)

    @property
    def told(self) -> str:
        return " ".join(sentence for _, sentence in self.state.notices)


@asynccontextmanager
async def talking(url: str, **options: Any) -> AsyncIterator[Talk]:
    talk = Talk(url, **options)
    await asyncio.to_thread(talk.card.open, talk.microphone.heard, talk.speaker.wanted)
    try:
        yield talk
    finally:
        talk.running.cancel()
        await asyncio.gather(talk.running, return_exceptions=True)
        await asyncio.to_thread(talk.card.close)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_module, "_WAITS_S", (0.0, 0.05))
    monkeypatch.setattr(conversation_module, "_POLL_S", 0.05)
    monkeypatch.setattr(conversation_module, "_REPORT_EVERY_S", 0.05)


def in_turn(*scripts: Script) -> tuple[Script, list[str]]:
    """The first caller meets the first script, and so on; gives their query strings too."""
    paths: list[str] = []

    async def script(stage: Stage) -> None:
        paths.append(stage.path)
        await scripts[min(len(paths), len(scripts)) - 1](stage)

    return script, paths


def loud(_: int) -> np.ndarray:
    return np.full(FRAME, 0.1, np.float32)


async def answer_then_vanish(stage: Stage) -> None:
    await stage.ready(id="one", resume_token="first")
    await stage.send(2, b" Hello")
    for _ in range(3):
        await stage.hear()
        await stage.speak(silence())
    stage.vanish()


async def test_words_signals_and_loss_reach_the_state() -> None:
    async def script(stage: Stage) -> None:
        await stage.ready(id="one", adapter="a1", consent={"keep": True, "train": False})
        await stage.send(2, b" Hel")
        await stage.send(2, b"lo")
        for state in ("provisional", "final"):
            await stage.note({"type": "signal", "kind": "barge_in", "t": 1.5, "confidence": 1, "id": 1, "state": state})
        await stage.note(
            {"type": "signal", "kind": "backchannel", "t": 2, "confidence": 1, "id": 2, "state": "withdrawn"}
        )
        await stage.note({"type": "stats", "lag_ms": 160, "dropped_ms": 80, "skipped_ms": 240})
        await stage.gone()

    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.lost_ms == 320)
        state = talk.state
        assert (state.words, state.lag_ms, state.adapter, state.consent) == (" Hello", 160, "a1", "kept")
        assert [(each.kind, each.state) for each in state.signals] == [("barge_in", "final")]
        assert state.connection is Connection.TALKING


async def test_the_delay_counts_from_the_start_of_the_frame_that_is_answered() -> None:
    """At four times real time a frame lasts 20 ms: two of them, and what waits."""
    async with staged(answering(loud, max_speed=4.0)) as url, talking(url, output_s=lambda: 0.5) as talk:
        await talk.until(lambda: talk.jitter.put_samples > 30 * FRAME)
        assert talk.state.delay_ms is not None
        assert talk.state.delay_ms >= 500 + 2 * 20


async def test_a_broken_connection_is_resumed_with_the_newest_token() -> None:
    """The call goes on while it is looked at: where this program is stopped for seconds it is resumed once more."""

    async def again(stage: Stage) -> None:
        await stage.ready(id="one", resume_token="second")
        await stage.send(2, b" again")
        await stage.hear()
        stage.vanish()

    async def stay(stage: Stage) -> None:
        await stage.ready(id="one", resume_token="third")
        await stage.send(2, b" and on")
        while True:
            await stage.hear()  # or nobody would see that the caller has gone

    script, paths = in_turn(answer_then_vanish, again, stay)
    async with staged(script) as url, talking(url, query={"consent": "keep"}) as talk:
        await talk.until(lambda: "and on" in talk.state.words)
        tokens = [path.removeprefix("/api/chat?consent=keep") for path in paths]
        assert tokens[:3] == ["", "&resume_token=first", "&resume_token=second"]
        assert set(tokens[3:]) <= {"&resume_token=third"}
        assert "goes on where it was" in talk.told
        assert talk.state.reconnected >= 2
        assert talk.state.words.startswith(" Hello again and on"), "the same conversation"


async def test_a_conversation_that_is_gone_is_begun_anew_and_that_is_said() -> None:
    async def gone(stage: Stage) -> None:
        await stage.send(5, b"got a resume_token of no call that can be resumed")
        await stage.close(4410)

    async def anew(stage: Stage) -> None:
        await stage.ready(id="two")
        await stage.send(2, b" Who?")
        await stage.gone()

    script, paths = in_turn(answer_then_vanish, gone, anew)
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: "Who?" in talk.state.words)
        assert [("resume_token" in path) for path in paths] == [False, True, False]
        assert "this is a new one" in talk.told
        assert talk.state.words == " Hello\n Who?"


async def test_a_server_of_another_kind_is_called_anew() -> None:
    """The stock server sends no session and knows no tokens."""

    async def stock(stage: Stage) -> None:
        await stage.ready()
        await stage.hear()
        stage.vanish()

    script, paths = in_turn(stock, stock, answering(loud))
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.reconnected == 2 and talk.jitter.put_samples > 0)
        assert paths[-1] == "/api/chat"
        assert talk.state.session is None


async def test_a_server_that_restarts_is_waited_for(unused_tcp_port: int) -> None:
    """Nobody listens for a while: the next server knows nothing of the call.

    The first one stops to listen before the call breaks: asyncio may not be closed over a caller who just comes.
    """
    stopped = asyncio.Event()

    async def go_down(stage: Stage) -> None:
        await stage.ready(id="one", resume_token="first")
        await stopped.wait()
        stage.vanish()

    async def handle(script: Script, socket: Any) -> None:
        await script(Stage(socket))

    async def restarted(stage: Stage) -> None:
        if "resume_token" in stage.path:
            await stage.close(4410, "not resumable")
        else:
            await answering(loud, id="two")(stage)

    url = f"ws://127.0.0.1:{unused_tcp_port}"
    async with (
        serve(lambda socket: handle(go_down, socket), "127.0.0.1", unused_tcp_port) as first,
        talking(url) as talk,
    ):
        await talk.until(lambda: talk.state.session == "one")
        first.close(close_connections=False)
        stopped.set()
        await talk.until(lambda: "No server answers" in talk.told)
        async with serve(lambda socket: handle(restarted, socket), "127.0.0.1", unused_tcp_port):
            await talk.until(lambda: talk.state.session == "two" and talk.state.connection is Connection.TALKING)


async def test_patience_ends() -> None:
    async def stay(stage: Stage) -> None:
        await stage.ready(id="one", resume_token="first")
        await stage.gone()

    server = staged(stay)
    url = await server.__aenter__()
    async with talking(url, patience_s=0.3) as talk:
        await talk.until(lambda: talk.state.connection is Connection.TALKING)
        await server.__aexit__(None, None, None)
        with pytest.raises(UnreachableError):
            await asyncio.wait_for(talk.running, 10)
        assert talk.state.connection is Connection.OVER


async def test_a_stalled_socket_is_shown_then_left_and_the_call_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_module, "_STALLED_AFTER_S", 0.1)
    monkeypatch.setattr(conversation_module, "_LOST_AFTER_S", 0.5)
    codes: list[int | None] = []

    async def stall(stage: Stage) -> None:
        await stage.ready(id="one", resume_token="first")
        try:
            while True:
                await stage.hear()
        finally:
            codes.append(stage._socket.close_code)

    script, paths = in_turn(stall, answering(loud, id="one", resume_token="second"))
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.connection is Connection.STALLED)
        await talk.until(lambda: talk.state.reconnected >= 1 and talk.jitter.put_samples > 0)
        assert "resume_token=first" in paths[1]
        assert "has sent nothing" in talk.told
    assert codes == [1006], "no goodbye, which would end the call"


async def test_lost_time_now_and_then_is_survived_on_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 %: the socket stands still for 0.1 s of every 2 s (here four times as fast), and then gives what it held.

    Where this machine stands still, the call does: the card makes up for nothing, and nobody takes it for stopped.
    """
    monkeypatch.setattr(sound_card_module, "_LATE_S", 0.0)
    monkeypatch.setattr(microphone_module, "_PATIENCE_S", 1000.0)

    async def stutter(stage: Stage) -> None:
        await stage.ready(max_speed=4.0)
        began, held = time.monotonic(), []
        for n in range(150):
            await stage.hear()
            held.append(speechlike(FRAME, seed=n))
            if (time.monotonic() - began) % 0.5 > 0.025:
                while held:
                    await stage.speak(held.pop(0))
        await stage.send(2, b"end")
        await stage.gone()

    async with staged(stutter) as url, talking(url, clock=lambda: 0.0) as talk:
        await talk.until(lambda: "end" in talk.state.words)
        figures = talk.jitter.figures()
        assert talk.state.reconnected == 0
        assert figures.dropped_ms == 0
        assert figures.waiting_ms <= 1000, "the most it ever holds"
        assert talk.jitter.put_samples >= 130 * FRAME


async def test_a_machine_that_slept_calls_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock jumps by a minute, as for a stopped program and on some systems for a sleeping one."""
    script, paths = in_turn(
        answering(loud, id="one", resume_token="first"), answering(loud, id="one", resume_token="second")
    )
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.jitter.put_samples > 0)
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + 60)
        await talk.until(lambda: talk.state.reconnected == 1)
        assert "stood still for 60 s" in talk.told or "sent nothing" in talk.told
        assert "resume_token=first" in paths[1]


async def test_what_has_come_when_a_machine_wakes_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps between a word's arrival and whoever waits for it."""
    read, now, slept_s = Link._read, time.monotonic, [0.0]

    def asleep(link: Link, message: bytes | str) -> Event | None:
        event = read(link, message)
        slept_s[0] = max(slept_s[0], 60.0 * isinstance(event, Piece))
        return event

    async def speak(stage: Stage) -> None:
        await stage.ready(id="one", resume_token="first")
        await stage.hear()
        await stage.send(2, b" Hello")
        while True:
            await stage.hear()

    script, paths = in_turn(speak, answering(loud, id="one", resume_token="second"))
    monkeypatch.setattr(time, "monotonic", lambda: now() + slept_s[0])
    monkeypatch.setattr(Link, "_read", asleep)
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.reconnected == 1)
        assert "stood still for 60 s" in talk.told
        assert paths[1] == "/api/chat?resume_token=first"
        assert talk.state.words == " Hello"


async def test_where_the_monotonic_clock_sleeps_too_the_wall_clock_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    script, _ = in_turn(answering(loud, id="one", resume_token="first"))
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.jitter.put_samples > 0)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 3600)
        await talk.until(lambda: talk.state.reconnected == 1)


async def test_without_a_card_the_call_goes_on_in_silence_until_it_is_back() -> None:
    heard: list[float] = []

    async def script(stage: Stage) -> None:
        await stage.ready(max_speed=4.0)
        while True:
            heard.append(float(np.abs(await stage.hear()).max()))
            await stage.speak(loud(0))

    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.jitter.played > 2 * FRAME)
        await asyncio.to_thread(talk.card.unplug, "the cable was pulled")
        before = len(heard)
        await talk.until(lambda: len(heard) > before + 30)
        assert max(heard[before + 5 :]) < 0.01
        assert talk.jitter.waiting_ms <= 40 + 80, "what nobody hears does not become delay"
        assert talk.state.reconnected == 0
        await asyncio.to_thread(talk.card.open, talk.microphone.heard, talk.speaker.wanted)
        played = talk.jitter.played
        await talk.until(lambda: talk.jitter.played > played + 10 * FRAME)


async def test_what_was_played_and_thought_is_told_to_the_server() -> None:
    notes: list[dict[str, Any]] = []

    async def script(stage: Stage) -> None:
        await stage.ready()
        for _ in range(400):
            message = await stage._socket.recv()
            assert isinstance(message, bytes)
            if message[0] == 4:
                notes.append(json.loads(message[1:]))
            if message[0] == 1:
                await stage.speak(loud(0))
        await stage.gone()

    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.jitter.played > 20 * FRAME)
        talk.conversation.rate("down")
        await talk.until(lambda: any(note["type"] == "feedback" for note in notes) and len(notes) > 5)
    played = [note["played_ms"] for note in notes if note["type"] == "playback"]
    assert played == sorted(played)
    assert 800 < played[-1] <= talk.jitter.played / 24
    assert {"type": "feedback", "value": "down", "t": None} in notes


def refusing(code: int, sentence: bytes) -> Callable[[Stage], Awaitable[None]]:
    async def script(stage: Stage) -> None:
        await stage.send(5, sentence)
        await stage.close(code)

    return script


async def hang_up(stage: Stage) -> None:
    await stage.ready(id="one", resume_token="first")
    await stage.hear()
    await stage.close(1000)


@pytest.mark.parametrize(
    ("first", "then", "error"),
    [
        (refusing(4429, b"all slots are taken"), None, ServerBusyError),
        (refusing(4400, b"bad parameter"), None, RefusedError),
        (hang_up, None, HungUpError),
        (answer_then_vanish, refusing(4408, b"a call of 3600 s"), RefusedError),
    ],
)
async def test_what_calling_again_cannot_mend_ends_the_call(first: Script, then: Script | None, error: type) -> None:
    script, paths = in_turn(*filter(None, (first, then)))
    async with staged(script) as url, talking(url) as talk:
        with pytest.raises(error):
            await asyncio.wait_for(talk.running, 10)
        assert len(paths) == 1 + (then is not None)


async def test_nobody_there_at_first_is_an_error_at_once() -> None:
    async with talking(f"ws://127.0.0.1:{free_port()}") as talk:
        with pytest.raises(UnreachableError):
            await asyncio.wait_for(talk.running, 10)


async def test_a_stopping_server_is_left_and_another_found() -> None:
    async def drained(stage: Stage) -> None:
        await stage.ready(id="one", resume_token="first")
        await stage.hear()
        await refusing(1001, b"got a call that went on while the server stopped")(stage)

    busy = refusing(4429, b"got a call while the model loads")
    script, paths = in_turn(drained, busy, answering(loud, id="two"))
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.session == "two")
        assert not any("resume_token" in path for path in paths), "that server's calls are over"


async def test_hanging_up_is_said_in_good_order() -> None:
    codes: list[int | None] = []

    async def script(stage: Stage) -> None:
        await stage.ready()
        codes.append(await stage.gone())

    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.connection is Connection.TALKING)
    assert codes == [1000]


async def test_a_caller_who_waits_is_told_where_he_stands() -> None:
    async def script(stage: Stage) -> None:
        await stage.note({"type": "queue", "position": 2, "eta_s": 9.6})
        await stage.gone()

    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.connection is Connection.WAITING)
        assert "you are number 2 in the queue, about 10 s" in talk.told


async def test_sound_that_is_none_is_a_lost_call_and_called_again() -> None:
    async def nonsense(stage: Stage) -> None:
        await stage.ready()
        await stage.send(1, b"RIFF is not Ogg, whatever it sounds like" * 3)
        await stage.gone()

    script, _ = in_turn(nonsense, answering(loud))
    async with staged(script) as url, talking(url) as talk:
        await talk.until(lambda: talk.state.reconnected == 1)
        assert "not Ogg/Opus" in talk.told
        assert issubclass(CallLostError, Exception)
