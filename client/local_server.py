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

__all__ = ["local_server"]

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
    port = _free_port()
    command = [sys.executable, "-m", "server", "--checkpoint", checkpoint, "--port", str(port), *flags]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/readyz", log)
            yield f"ws://127.0.0.1:{port}"
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not _is_ready(url):
        if process.poll() is not None:
            raise UnreachableError(f"The server ended with code {process.returncode}:\n{_last_lines(log)}")
        if time.monotonic() > deadline:
            raise UnreachableError(f"The server was not ready after {_READY_S:.0f} s:\n{_last_lines(log)}")
        time.sleep(_POLL_S)


def _is_ready(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
