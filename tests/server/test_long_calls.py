"""Nothing that belongs to a call grows with its length."""

import asyncio
import gc
import time
import tracemalloc
from pathlib import Path

import pytest

from server import protocol
from server.boxes import Reply
from server.config import ServerConfig
from server.engine import Engine
from server.generations import describe
from server.metrics import Metrics
from server.ogg import OggWriter
from server.parameters import read_parameters
from server.session import ModelInfo, Session
from server.sound import PACKET_MS, SoundEncoder
from tests.server.caller import voice

MINUTE = 750
LONGEST_GROWTH_BYTES = 40_000
"""Far less than one byte for each of what moved; lists, buffers and dictionaries may have reached their size late."""


class EndlessWire:
    """A peer that speaks frame after frame, for as long as it is asked, and hears everything at once."""

    def __init__(self, model: ModelInfo, frames: int) -> None:
        self.sent = 0
        self._left = frames
        self._encoder = SoundEncoder(sample_rate=model.sample_rate)
        self._ogg = OggWriter(head=self._encoder.head, packet_ms=PACKET_MS)
        (self._frame,) = voice(1, rate=model.sample_rate)

    def more(self, frames: int) -> None:
        self._left = frames

    async def next_message(self) -> bytes | None:
        await asyncio.sleep(0)
        if not self._left:
            return None
        self._left -= 1
        return protocol.audio(self._ogg.write(self._encoder.encode(self._frame)))

    async def send(self, message: bytes) -> None:
        self.sent += message[0] == protocol.Kind.AUDIO


class Parrot:
    """In place of the model: every frame comes back at once, with a word."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def answer(self) -> None:
        session = self.session
        assert session is not None
        now = time.monotonic()
        while (frame := session.inbox.take(now)) is not None:
            sound = session.encoder.encode(frame.pcm) if session.encoder else ()
            reply = Reply(sound=sound, token=9, heard_at=frame.at, due_at=frame.due_at, began_at=now, stepped_at=now)
            session.take_reply(reply, session.encoder)


@pytest.mark.slow
async def test_a_session_is_as_large_after_minutes_as_after_seconds(tiny: Path) -> None:
    model = describe(await asyncio.to_thread(Engine.load, tiny, slots=1, device="cpu"))
    parrot, config = Parrot(), ServerConfig(max_speed=1e6)
    session = Session(
        model=model, parameters=read_parameters({}), config=config, metrics=Metrics(), on_frame=parrot.answer
    )
    parrot.session = session
    session.start(0)
    wire = EndlessWire(model, MINUTE)
    speaking = asyncio.create_task(session.speak(wire, resume_token=None))
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(4):
            wire.more(MINUTE)
            await session.listen(wire)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        speaking.cancel()
        await asyncio.wait((speaking,))
    assert wire.sent > 3.9 * MINUTE
    assert sizes[-1] - sizes[0] < LONGEST_GROWTH_BYTES, sizes
