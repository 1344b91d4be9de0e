"""Keeps a sound card running: opens it, looks after it, and opens it again when it was unplugged.

It knows the card and the sentences for its user. What the call does without a microphone is `client.microphone`'s.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from client.errors import DeviceError
from client.sound_card import Heard, SoundCard, Wanted

__all__ = ["running"]

_LOOK_EVERY_S: Final = 0.5
_RETRY_EVERY_S: Final = 2.0


@asynccontextmanager
async def running(
    card: SoundCard, heard: Heard, wanted: Wanted, *, tell: Callable[[str], None], look_every_s: float = _LOOK_EVERY_S
) -> AsyncIterator[asyncio.Event]:
    """Open the card and keep it open until the block ends. Gives an event that is set when its file is through.

    Raises DeviceError when it cannot be opened at first; later that is told to the user and tried again.
    """
    await asyncio.to_thread(card.open, heard, wanted)
    over = asyncio.Event()
    looking = asyncio.create_task(_look_after(card, heard, wanted, tell, over, look_every_s))
    try:
        yield over
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await asyncio.to_thread(card.close)


async def _look_after(
    card: SoundCard,
    heard: Heard,
    wanted: Wanted,
    tell: Callable[[str], None],
    over: asyncio.Event,
    look_every_s: float,
) -> None:
    while True:
        await asyncio.sleep(look_every_s)
        if card.over:
            over.set()
        if card.problem:
            tell(f"The sound card: {card.problem} Looking for it; the call goes on in silence.")
            await _open_again(card, heard, wanted, look_every_s)
            tell(f"The sound card is back: {card.name}.")


async def _open_again(card: SoundCard, heard: Heard, wanted: Wanted, look_every_s: float) -> None:
    while True:
        await asyncio.to_thread(card.close)
        try:
            await asyncio.to_thread(card.open, heard, wanted)
        except DeviceError:
            await asyncio.sleep(look_every_s * _RETRY_EVERY_S / _LOOK_EVERY_S)
        else:
            return
