"""`benchmarks.beside` at toy size: a real server, real calls, a real learner; structure and counts, never a time."""

import argparse
import json
import threading
import time
from pathlib import Path

import pytest

from benchmarks import beside
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), sample_rate=24000)


def test_what_is_written_makes_rounds_to_the_end(tiny: Path, tmp_path: Path) -> None:
    beside._write_pairs(tmp_path / "stock", tiny, 2)
    given = argparse.Namespace(checkpoint=str(tiny), priority="normal", threads=1)
    learner = beside.Learner(given, tmp_path / "stock")
    with learner.at_work():
        while not learner.rounds:
            time.sleep(0.05)
    beside._write_pairs(tmp_path / "none", tiny, 0)
    with pytest.raises(RuntimeError, match="ended without a round"):
        beside.Learner(given, tmp_path / "none")._work(threading.Event())


def test_beside(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--callers", "2", "--windows", "1", "--window-seconds", "6", "--pairs", "2", "--priority", "normal"]
    beside.main(["--json", "--checkpoint", str(tiny), *size])
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert report["benchmark"] == "beside"
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["late_frames_caused"]["goal"] == rows["frames_lost"]["goal"] == 0
    assert rows["learner_cores"]["value"] > 0.05, "it did compute"
    for name in ("delay_p50_ms", "delay_p99_ms", "delay_p99.9_ms"):
        assert rows[name]["peer"] == "without a learner"
        assert rows[name]["value"] > 0 < rows[name]["peer_value"]
