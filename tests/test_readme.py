"""The README's commands, run as they stand; the links and the map, followed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile

from client.local_server import is_ready, local_server
from server.journal import open_journal
from tests.tiny_checkpoint import write_tiny_checkpoint

ROOT = Path(__file__).parents[1]
NOT_OURS = {".venv", "build", "demo", "data"}

ROOMS = (
    "server",
    "server/engine",
    "server/signals",
    "server/journal",
    "online_align",
    "kernels",
    "kernels/cpu",
    "client",
    "client/load",
    "benchmarks",
)
"""Packages that the map lists module by module."""

MAKE_DEMO = "make demo"
MAKE_SERVE = "make serve"
SAY = ".venv/bin/duologue say tests/assets/speech/demo_2.opus --out reply.wav --stereo call.wav"
SERVE = ".venv/bin/duologue-server --checkpoint mini --port 8998"
JOURNAL = ".venv/bin/duologue-align journal stats"
LOAD = ".venv/bin/duologue load --callers 8 --seconds 20 --picture load.png"
BY_CI = {"make check", "make test"}
"""What `.ci/run` does; a test cannot run the suite that it is part of."""


def pages(root: Path) -> list[Path]:
    """Every Markdown page below `root`, wherever that lies, without what was installed or made there."""
    return sorted(path for path in root.glob("**/*.md") if not NOT_OURS & set(path.relative_to(root).parts))


PAGES = pages(ROOT)


def commands(page: str) -> list[str]:
    """Lines of the shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone after its set-up: our files, and this interpreter's environment as `.venv`."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in {".git", ".venv", "demo", "data"}:
            (folder / path.name).symlink_to(path)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".installed":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / ".installed").touch()
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny_for_readme"))


def environment(**more: str) -> dict[str, str]:
    """Ours, without what an outer `make test ARGS=...` told its children."""
    return {key: value for key, value in os.environ.items() if key != "ARGS" and not key.startswith("MAKE")} | more


def test_every_command_has_its_test() -> None:
    assert set(commands((ROOT / "README.md").read_text())) == {MAKE_DEMO, MAKE_SERVE, SAY, SERVE, LOAD, JOURNAL} | BY_CI


def test_ci_runs_the_rest() -> None:
    assert set((ROOT / ".ci" / "run").read_text().splitlines()) >= BY_CI


@pytest.mark.mini
@pytest.mark.timeout(1800)
def test_make_demo(clone: Path) -> None:
    done = subprocess.run(MAKE_DEMO.split(), cwd=clone, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 5 answers are right" in done.stdout
    assert {path.name for path in (clone / "demo").glob("*.png")} == {"timeline.png"}
    assert len(list((clone / "demo").glob("call_*.wav"))) == 5
    learning = json.loads((clone / "demo" / "learning.json").read_text())
    assert learning["live_from"] is None
    assert learning["live_to"].startswith("round-")
    assert learning["round"]["pairs"]


def test_say(clone: Path, tiny: Path, tmp_path: Path) -> None:
    with local_server(str(tiny), log=tmp_path / "log") as url:
        done = subprocess.run(
            SAY.split(), cwd=clone, env=environment(DUOLOGUE_URL=url), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "sound to sound" in done.stdout
    assert soundfile.info(clone / "reply.wav").channels == 1
    assert soundfile.info(clone / "call.wav").channels == 2


def test_load(clone: Path, tiny: Path, tmp_path: Path) -> None:
    """As it stands but for its length."""
    with local_server(str(tiny), log=tmp_path / "log") as url:
        done = subprocess.run(
            [*LOAD.split(), "--seconds", "4"],
            cwd=clone,
            env=environment(DUOLOGUE_URL=url),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert (clone / "load.png").stat().st_size > 10_000


def test_journal(clone: Path) -> None:
    """Where nothing was kept yet it says so; where there is a journal, it counts."""
    refused = subprocess.run(JOURNAL.split(), cwd=clone, env=environment(), capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "expected" in refused.stderr
    open_journal(clone / "data").engine.dispose()
    done = subprocess.run(JOURNAL.split(), cwd=clone, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^sessions +0$", done.stdout, re.MULTILINE)


@pytest.mark.timeout(300)  # six interpreters load torch, one after another
def test_make_bench(clone: Path) -> None:
    """The whole takes long; each benchmark runs at toy size in `tests/benchmarks`."""
    done = subprocess.run(
        ["make", "bench", "ARGS=--help"], cwd=clone, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[3] for line in done.stdout.splitlines() if line.startswith("usage:")] == [
        "benchmarks.frame_step",
        "benchmarks.capacity",
        "benchmarks.delay",
        "benchmarks.journal",
        "benchmarks.metrics",
        "benchmarks.learner",
    ]


def test_make_serve(clone: Path, tiny: Path, unused_tcp_port: int) -> None:
    settings = environment(DUOLOGUE_CHECKPOINT=str(tiny), DUOLOGUE_PORT=str(unused_tcp_port))
    with running(MAKE_SERVE, clone, settings):
        wait_until_ready(unused_tcp_port)


@pytest.mark.mini
def test_serve(clone: Path, unused_tcp_port: int) -> None:
    """As it stands but for the port, which may be taken."""
    with running(f"{SERVE} --port {unused_tcp_port}", clone, environment()):
        wait_until_ready(unused_tcp_port)


@contextmanager
def running(command: str, folder: Path, settings: dict[str, str]) -> Iterator[None]:
    """Run a command and its children in a group of their own, and end the group as a terminal would."""
    log = folder / "command.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command.split(), cwd=folder, env=settings, start_new_session=True, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)
        print(log.read_text())
    assert "Traceback" not in log.read_text()


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while not is_ready(f"http://127.0.0.1:{port}/readyz"):
        assert time.monotonic() < deadline, "not ready within a minute"
        time.sleep(0.2)


def test_pages_are_found_wherever_a_clone_lies(tmp_path: Path) -> None:
    root = tmp_path / "demo" / "build" / ".venv"
    for page in (root / "README.md", root / "docs" / "log.md", root / ".venv" / "not_ours.md"):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.touch()
    assert pages(root) == [root / "README.md", root / "docs" / "log.md"]
    assert {ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "recipes" / "mini" / "README.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [
        target
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not missing


@pytest.mark.parametrize(("heading", "folder"), [(f"`{folder}`", folder) for folder in ROOMS])
def test_the_map_shows_every_room_and_no_other(heading: str, folder: str) -> None:
    section = (ROOT / "ARCHITECTURE.md").read_text().partition(f"### {heading}")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    drawn = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert drawn == {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}


def test_the_first_screen_says_what_it_is() -> None:
    """A picture and two commands before the first heading, within what a screen shows."""
    first = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(first.splitlines()) <= 20
    assert len(re.findall(r"^!\[", first, re.MULTILINE)) == 1
    assert commands(first) == [MAKE_DEMO, MAKE_SERVE]
