"""The `moshi` package's own client with a sound card of files: `python -m benchmarks.stock_client IN.wav OUT.wav URL`.

The card is the one that our client is measured with. The stock client asks it for 80 ms at once; what it gives is
played from the next 20 ms on, as with ours.
"""

import os
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from client.sound import FRAME_SIZE, Pcm
from client.sound_card import FileCard

__all__ = ["main"]

Callback = Callable[[Any, int, Any, Any], None]


def main() -> None:
    """Call until the file is through."""
    microphone, loudspeakers, url = sys.argv[1:]
    card = FileCard(Path(microphone), Path(loudspeakers), tail_s=1.0)
    sys.modules["sounddevice"] = _stand_in(card)
    threading.Thread(target=_leave_when_over, args=(card,), daemon=True).start()
    sys.argv = ["moshi.client", "--url", url]
    from moshi.client import main as talk  # noqa: PLC0415 - after sounddevice has its stand-in

    talk()


def _leave_when_over(card: FileCard) -> None:
    while not card.over:
        threading.Event().wait(0.1)
    card.finish()
    os._exit(0)  # it has no end of its own


def _stand_in(card: FileCard) -> types.ModuleType:
    """Make a `sounddevice` whose two streams are one card's sides; the second that begins starts the card."""
    callbacks: dict[str, Callback] = {}
    heard: Pcm = np.zeros(0, np.float32)
    ready: Pcm = np.zeros(0, np.float32)

    def hear(block: Pcm) -> None:
        nonlocal heard
        heard = np.concatenate((heard, block))
        if len(heard) >= FRAME_SIZE:
            frame, heard = heard[:FRAME_SIZE], heard[FRAME_SIZE:]
            callbacks["input"](frame[:, None], FRAME_SIZE, None, None)

    def want(count: int) -> Pcm:
        nonlocal ready
        if len(ready) < count:
            block = np.zeros((FRAME_SIZE, 1), np.float32)
            callbacks["output"](block, FRAME_SIZE, None, None)
            ready = np.concatenate((ready, block[:, 0]))
        given, ready = ready[:count], ready[count:]
        return given

    class Stream:
        side = ""

        def __init__(self, *, callback: Callback, **_: Any) -> None:
            self._callback = callback

        def __enter__(self) -> Any:
            callbacks[self.side] = self._callback
            if len(callbacks) == 2:
                card.open(hear, want)
            return self

        def __exit__(self, *_: object) -> None:
            card.close()

    made = types.ModuleType("sounddevice")
    made.__dict__["InputStream"] = type("InputStream", (Stream,), {"side": "input"})
    made.__dict__["OutputStream"] = type("OutputStream", (Stream,), {"side": "output"})
    return made


if __name__ == "__main__":
    main()
