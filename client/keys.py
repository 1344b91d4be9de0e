"""Single keys from the terminal, without Enter: on Unix by termios, on Windows by msvcrt.

It knows key presses. A terminal reports no releases, so a key can only toggle.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["listening_to_keys"]

_POLL_S: Final = 0.05


@contextlib.contextmanager
def listening_to_keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` on the event loop with every key pressed; the terminal is as it was when the block ends.

    Does nothing where standard input is no terminal.
    """
    if not sys.stdin.isatty():
        yield
    elif sys.platform == "win32":
        with _windows(on_key):
            yield
    else:
        with _unix(on_key):
            yield


@contextlib.contextmanager
def _unix(on_key: Callable[[str], None]) -> Iterator[None]:
    import termios  # noqa: PLC0415 - not on Windows
    import tty  # noqa: PLC0415

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()

    def read() -> None:
        keys = os.read(terminal, 64)
        if not keys:  # the terminal was closed: it would be readable for ever
            loop.remove_reader(terminal)
        for key in keys.decode(errors="ignore"):
            on_key(key)

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _windows(on_key: Callable[[str], None]) -> Iterator[None]:
    import msvcrt  # noqa: PLC0415 - only on Windows

    keyboard: Any = msvcrt
    loop = asyncio.get_running_loop()
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(_POLL_S):
            while keyboard.kbhit():
                loop.call_soon_threadsafe(on_key, keyboard.getwch())

    watcher = threading.Thread(target=watch, name="duologue-keys", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopping.set()
        watcher.join()
