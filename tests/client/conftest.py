"""A real server in a process of its own, with a tiny random model: quick, and as strict as the big one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.local_server import local_server
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny_for_clients"))


@pytest.fixture(scope="session")
def server_url(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of one slot that lets callers speak eight times as fast, and loses nothing on a busy machine."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with pytest.MonkeyPatch.context() as settings:
        for box in ("DUOLOGUE_INBOX_MS", "DUOLOGUE_OUTBOX_MS"):
            settings.setenv(box, "60000")
        with local_server(str(tiny_folder), log=log, flags=["--slots", "1", "--max-speed", "8"]) as url:
            yield url
