"""A program in a real terminal: a pseudo-terminal of the system, with `pyte` as what a person would see on it."""

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyte

COLUMNS, LINES = 100, 30
PROGRAM = ("-m", "client")


class Terminal:
    """`python -m client ARGUMENTS` in a terminal."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._theirs = theirs
        self.attributes_before = self.attributes
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=os.environ | {"TERM": "xterm-256color"} | dict(environment or {}),
            preexec_fn=_own_terminal,  # noqa: PLW1509 - tests start it from their only thread
        )

    @property
    def attributes(self) -> list[Any]:
        """What `stty` shows: echo, line mode and the rest."""
        return termios.tcgetattr(self._theirs)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def look(self, seconds: float = 0.05) -> None:
        """Show what the program writes within so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and select.select([self._ours], [], [], left)[0]:
            with contextlib.suppress(OSError):
                output = os.read(self._ours, 65536)
                self.written += output
                self._stream.feed(output)

    def until(self, shown: str | Callable[[str], bool], *, timeout_s: float = 60.0) -> None:
        """Wait until the screen shows a text, be it wrapped into several lines, or one that pleases."""
        pleases = shown if callable(shown) else lambda text: shown in " ".join(text.replace("│", " ").split())
        deadline = time.monotonic() + timeout_s
        while not pleases(self.text):
            assert time.monotonic() < deadline, f"not shown: {shown!r}\n{self.text}"
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text}"
            self.look()

    def end(self, *, timeout_s: float = 20.0) -> int:
        """Wait for its end and give the exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"does not end:\n{self.text}"
            self.look()
        self.look()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@contextlib.contextmanager
def in_terminal(
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    program: Sequence[str] = PROGRAM,
) -> Iterator[Terminal]:
    terminal = Terminal(arguments, environment=environment, folder=folder, program=program)
    try:
        yield terminal
    finally:
        terminal.close()


def _own_terminal() -> None:
    """Make the terminal the process's own, so that Ctrl-C reaches it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
