"""The `moshi` package's own client, unchanged, against the live server. Only its sound card is files."""

import argparse
import asyncio
import contextlib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.server import sound_card
from tests.server.caller import RATE, calling, voice
from tests.server.live import serving, until

FRAMES = 30


class Notes:
    """A printer, as `moshi.client_utils` calls them, that remembers."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, str]] = []
        self.words: list[str] = []

    def log(self, level: str, message: str) -> None:
        self.logged.append((level, message))

    def print_header(self) -> None:
        pass

    def print_token(self, token: str) -> None:
        self.words.append(token)

    def print_pending(self) -> None:
        pass

    def print_lag(self) -> None:
        pass


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`moshi.client`, freshly imported where `sounddevice` is the stand-in."""
    sound_card.write_wav(tmp_path / "microphone.wav", np.concatenate(voice(FRAMES)), RATE)
    stand_in = sound_card.module(tmp_path / "microphone.wav", tmp_path / "loudspeakers.wav")
    monkeypatch.setitem(sys.modules, "sounddevice", stand_in)
    monkeypatch.delitem(sys.modules, "moshi.client", raising=False)
    return importlib.import_module("moshi.client")


def _run(stock: Any, notes: Notes, url: str) -> asyncio.Task[None]:
    host, port = url.removeprefix("http://").split(":")
    options = argparse.Namespace(url=None, https=False, host=host, port=int(port))
    return asyncio.create_task(stock.run(notes, options))


async def test_the_stock_client_talks(stock: ModuleType, tiny: Path, tmp_path: Path) -> None:
    """It sends from the first moment, without waiting for the handshake: what came before it is not heard."""
    notes = Notes()
    async with serving(tiny, slots=1) as live:
        conversation = _run(stock, notes, live.url)
        await until(lambda: live.count("duologue_tick_duration_seconds_count", stage="total") >= FRAMES // 2)
        await asyncio.sleep(0.3)
        assert not conversation.done()
        logged = list(notes.logged)  # being cancelled, it may write into its closed socket and say so
        conversation.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await conversation
        await until(lambda: live.count("duologue_sessions_total", end_reason="hang_up") == 1)
    assert "".join(notes.words).strip(), "text came and was printed"
    assert ("info", "connected!") in logged
    # Upstream's client warns of every kind but sound and text, the handshake included; anything else is trouble.
    trouble = [entry for entry in logged if entry[0] != "info" and "unknown message kind" not in entry[1]]
    assert not trouble
    heard = sound_card.read_wav(tmp_path / "loudspeakers.wav")
    assert np.isfinite(heard).all()
    sounding = [np.abs(block).max() > 0.01 for block in heard[: heard.size // 1920 * 1920].reshape(-1, 1920)]
    assert sum(sounding) >= FRAMES // 3


async def test_the_stock_client_waits_in_the_queue(stock: ModuleType, tiny: Path) -> None:
    """It keeps sending while it waits; then it is served like anybody else."""
    notes = Notes()
    async with serving(tiny, slots=1) as live, calling(live.url) as first:
        await first.greeted()
        conversation = _run(stock, notes, live.url)
        await until(lambda: live.count("duologue_sessions_waiting") == 1)
        await asyncio.sleep(0.2)
        assert not notes.words
        await first.hang_up()
        await until(lambda: bool(notes.words))
        conversation.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await conversation
