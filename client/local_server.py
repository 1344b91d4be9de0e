"""A server of our own for as long as a block lasts: another process, on a free port of this machine."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from client.errors import UnreachableError

__all__ = ["free_port", "is_ready", "local_server", "stop"]

_READY_S: Final = 90.0
_STOP_S: Final = 15.0
_POLL_S: Final = 0.1
_LOG_LINES: Final = 15


@contextmanager
def local_server(checkpoint: str, *, log: Path, flags: Sequence[str] = ()) -> Iterator[str]:
    """Start `python -m server`, wait until it is ready, give its `ws://` address, and stop it at the end.

    What the server says goes to the file `log`. Raises UnreachableError, with the end of that file, when the
    server ends or is not ready in time.
    """
    port = free_port()
    command = [sys.executable, "-m", "server", "--checkpoint", checkpoint, "--port", str(port), *flags]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/readyz", log)
            yield f"ws://127.0.0.1:{port}"
        finally:
            stop(process)


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not is_ready(url):
        if process.poll() is not None:
            raise UnreachableError(f"The server ended with code {process.returncode}:\n{_last_lines(log)}")
        if time.monotonic() > deadline:
            raise UnreachableError(f"The server was not ready after {_READY_S:.0f} s:\n{_last_lines(log)}")
        time.sleep(_POLL_S)


def is_ready(url: str) -> bool:
    """Whether the address answers with 200, asked without any proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server as an operator would, and by force when it does not."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
