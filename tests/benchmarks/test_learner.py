"""The learner's benchmark at toy size: both sides run, agree on the scores, and the rows are there; never a time."""

import json

import pytest

from benchmarks import learner
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_learner(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))
    size = ["--pairs", "3", "--steps", "1", "--trials", "1", "--frames", "4", "9", "3", "6"]
    learner.main(["--json", "--checkpoint", tiny, *size])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "learner"
    rows = {row["name"]: row for row in report["rows"]}
    for name in ("pairs_per_s_vs_peer", "peak_memory_vs_peer"):
        assert (rows[name]["peer"], rows[name]["goal"]) == ("plain DPO", 3)
    assert rows["pairs_per_s_vs_peer"]["value"] > rows["pairs_per_s_with_references"]["value"] > 0
    assert rows["scores_apart"]["met"]
