"""The operator's page, run from top to bottom in one shell, as it stands but for the port and the model."""

import re
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.test_readme import ROOT, clone, commands, environment
from tests.tiny_checkpoint import write_tiny_checkpoint

__all__ = ["clone"]

PAGE = (ROOT / "docs" / "operations.md").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny_for_operations"))


def without_proxies(settings: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in settings.items() if not key.lower().endswith("_proxy")}


@pytest.mark.timeout(240)
def test_every_command_of_the_page(clone: Path, tiny: Path, unused_tcp_port: int) -> None:
    script = "set -euo pipefail\ntrap 'kill -9 ${SERVER:-} 2>/dev/null || true' EXIT\n" + "\n".join(commands(PAGE))
    done = subprocess.run(
        ["bash", "-c", script.replace("8998", str(unused_tcp_port))],
        cwd=clone,
        env=without_proxies(environment(DUOLOGUE_CHECKPOINT=str(tiny), DUOLOGUE_SLOTS="2")),
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    log = (clone / "server.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "duologue_frames_total" in done.stdout
    assert "sound to sound" in done.stdout
    assert '"sessions":[' in done.stdout
    assert re.search(r"^1 sessions deleted$", done.stdout, re.MULTILINE)
    assert re.search(r"^0 faults in 0 sessions$", done.stdout, re.MULTILINE)
    assert "SHA-256 fingerprint" in done.stdout
    assert "tokens read: 2" in log
    for holder in ("anna", "prometheus", "operator"):
        token = (clone / "secrets" / holder).read_text().strip()
        assert token not in log + done.stdout + (clone / "secrets" / "tokens").read_text()
    assert not list((clone / "data" / "keys").glob("*/*.key")), "the call's key is destroyed"
    with sqlite3.connect(clone / "journal-backup.sqlite") as backup:
        assert backup.execute("select count(*) from sessions").fetchone() == (0,)
    assert (clone / "call.json").stat().st_size > 1000
    assert "Traceback" not in log
