"""The two servers that are compared, each a process of its own on a free port of this machine, on the same weights."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.report import this_machine
from client.errors import UnreachableError
from client.local_server import free_port, is_ready, stop

__all__ = ["Running", "callers_served", "checkpoint_folder", "our_server", "stock_server"]

_READY_S: Final = 120.0
_PAGE_S: Final = 60.0
_POLL_S: Final = 0.1
_LOG_LINES: Final = 15
_ROOT: Final = Path(__file__).parents[1]
_MINI: Final = _ROOT / "server" / "checkpoints" / "mini"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A server that takes calls."""

    url: str
    pid: int
    ready_s: float
    """From the start of the process until it took calls."""


def callers_served(url: str) -> int:
    """Ask our server how many calls it has."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url.replace("ws://", "http://") + "/api/sessions", timeout=_PAGE_S) as response:
        return len(json.load(response)["sessions"])


def checkpoint_folder(checkpoint: str) -> Path:
    """Find the folder of "mini" or of a path."""
    return _MINI if checkpoint == "mini" else Path(checkpoint).absolute()


@contextmanager
def our_server(
    checkpoint: str, *, slots: int, flags: Sequence[str] = (), program: Sequence[str] = ("server",)
) -> Iterator[Running]:
    """Serve with this project's server. Raises UnreachableError with the end of its log when it does not get ready.

    `program` is another module that takes the server's arguments, with words to put before them.
    """
    port = free_port()
    command = [sys.executable, "-m", *program, "--checkpoint", checkpoint, "--slots", str(slots), "--port", str(port)]
    with _process([*command, *flags], port, lambda: is_ready(f"http://127.0.0.1:{port}/readyz")) as running:
        yield running


@contextmanager
def stock_server(checkpoint: str, *, program: Sequence[str] = ("benchmarks.stock_moshi",)) -> Iterator[Running]:
    """Serve with the `moshi` package's own server, in its own precision (see `benchmarks.stock_moshi`).

    It computes on as many threads as our server: all cores but one, unless OMP_NUM_THREADS says otherwise.
    """
    port, folder = free_port(), checkpoint_folder(checkpoint)
    names = json.loads((folder / "config.json").read_text())
    with tempfile.TemporaryDirectory() as place:
        # Its command line cannot name the codec's configuration; the configuration of the whole can.
        config = Path(place) / "config.json"
        config.write_text(json.dumps(names | {"mimi_config_name": (folder / names["mimi_config_name"]).as_uri()}))
        files = {"moshi-weight": "moshi_name", "mimi-weight": "mimi_name", "tokenizer": "tokenizer_name"}
        command = [sys.executable, "-m", *program, "--config-path", str(config), "--device", "cpu"]
        for flag, name in files.items():
            command += [f"--{flag}", str(folder / names[name])]
        command += ["--static", "none", "--host", "127.0.0.1", "--port", str(port)]
        threads = {"OMP_NUM_THREADS": str(max(1, this_machine().cores - 1))}
        with _process(command, port, lambda: _listens(port), environment=threads | dict(os.environ)) as running:
            yield running


@contextmanager
def _process(
    command: Sequence[str], port: int, is_ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=log, stderr=log, cwd=_ROOT, env=environment) as process:
            try:
                _wait(process, is_ready, Path(log.name))
                yield Running(url=f"ws://127.0.0.1:{port}", pid=process.pid, ready_s=time.monotonic() - began)
            finally:
                stop(process)


def _wait(process: "subprocess.Popen[bytes]", is_ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            state = f"ended with code {process.returncode}" if process.returncode is not None else "is not ready"
            last = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            raise UnreachableError(f"The server {state}:\n{last}")
        time.sleep(_POLL_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
