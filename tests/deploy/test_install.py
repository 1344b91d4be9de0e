"""The image's steps, done in a clean folder by the script that the image runs, and the server that comes of them.

No container engine is needed, and none is used: base image, layers and ports are not tested here. What is: that the
repository as the image gets it installs at the locked versions, that the programs need nothing else of it, and that a
server without any privilege can serve from a folder it cannot write to, with two folders of its own.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from client.local_server import free_port, stop
from tests.deploy.prometheus import DEPLOY, ROOT

POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if os.geteuid() == 0 else []
"""Takes from root what makes it more than another user: it may then write only where permissions say so. (Another user
could not run the test's interpreter where that is in root's home.)"""
READY_S = 120.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def image_files() -> list[str]:
    """Files of the repository that Dockerfile.dockerignore leaves in."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    folders = tuple(f"{line}/" for line in ignored if line and not line.startswith(("#", "*")))
    return [name for name in listed if name and not name.startswith(folders) and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that others may look into, with the repository as the image gets it."""
    folder = Path(tempfile.mkdtemp(prefix="duologue-image-"))
    folder.chmod(0o755)
    for name in image_files():
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def installed(place: Path) -> Path:
    """What deploy/install.sh makes, less bytecode, which takes longer than all the rest."""
    prefix = place / "opt" / "duologue"
    prefix.parent.mkdir()
    done = subprocess.run(
        [place / "source" / "deploy" / "install.sh", prefix],
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"PIP_NO_COMPILE": "1"},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("installed: torch 2.")
    shutil.rmtree(place / "source")  # nothing may depend on it from now on
    return prefix


def pins(lines: str) -> dict[str, str]:
    """Versions by name, of lines that say `name==version`."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)", lines, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_it_is_what_was_locked_and_no_test_tool(installed: Path) -> None:
    command = [str(installed / "bin" / "python"), "-m", "pip", "list", "--format=freeze"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    here, locked = pins(said.stdout), pins((ROOT / "requirements.lock").read_text())
    other = {name: (here[name], locked[name]) for name in here.keys() & locked.keys() if here[name] != locked[name]}
    assert not other
    assert {"duologue", "moshi", "torch", "aiohttp", "psycopg", "prometheus-client"} <= set(here)
    assert not {"pytest", "mypy", "ruff", "hypothesis", "matplotlib"} & set(here)


def test_a_server_without_privileges_serves_from_it(installed: Path, place: Path) -> None:
    state, cache = place / "state", place / "cache"
    for folder in (state, cache):
        folder.mkdir(mode=0o700)
    subprocess.run(["chmod", "-R", "a-w", installed], check=True)
    port = free_port()
    environment = {
        "PATH": f"{installed / 'bin'}:{os.environ['PATH']}",
        "DUOLOGUE_CONFIG": str(DEPLOY / "duologue.toml"),
        "DUOLOGUE_DATA_DIR": str(state),
        "DUOLOGUE_PORT": str(port),
        "DUOLOGUE_DEVICE": "cpu",
        "XDG_CACHE_HOME": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    log = place / "server.log"
    with log.open("wb") as output:
        command = [*POWERLESS, "duologue-server"]
        process = subprocess.Popen(command, cwd=state, env=environment, stdout=output, stderr=output)
        try:
            _until_healthy(process, installed, port, log)
        finally:
            stop(process)
    assert process.returncode == 0, log.read_text()
    assert any((cache / "duologue").glob("frame-*.so")), "the step was compiled where the image may write"
    written = subprocess.run([*POWERLESS, "touch", installed / "here"], capture_output=True, check=False)
    assert written.returncode != 0, "else this test could not have failed"


def _until_healthy(process: subprocess.Popen[bytes], installed: Path, port: int, log: Path) -> None:
    """Ask as the image's health check does, with its own command."""
    command = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["server"]["healthcheck"]["test"]
    assert command[:2] == ["CMD", "python"]
    check = [installed / "bin" / "python", *(part.replace("8998", str(port)) for part in command[2:])]
    assert command[-1] in (DEPLOY / "Dockerfile").read_text(), "image and compose ask the same"
    deadline = time.monotonic() + READY_S
    refused = 0
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        if subprocess.run(check, capture_output=True, check=False, cwd="/").returncode == 0:
            assert refused, "while the model loads, the check says no"
            return
        refused += 1
    raise AssertionError(f"not healthy after {READY_S} s: {log.read_text()}")
