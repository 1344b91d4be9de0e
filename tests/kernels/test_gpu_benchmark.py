"""The GPU benchmark in Triton's interpreter on a tiny model: that it runs, what it writes and what it survives."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from benchmarks import gpu, gpu_kernels, gpu_parts
from benchmarks.gpu import GpuReport
from kernels.roofline import MOSHI_7B
from server.engine.cuda import KernelStep
from server.engine.upstream import UpstreamStep
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.timeout(300)  # the interpreter shares its core with whatever else runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = {"context": 6, "num_layers": 1, "dep_q": 2, "n_q": 6, "delays": [0, 0, 1, 0, 1, 1, 1]}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), lm_overrides=overrides | {"depformer_context": 2})


def measured(part: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, dict[str, Any]]:
    """A part's lines, in this process."""
    small = ["--checkpoint", str(folder), "--age", "2", "--ages", "3", "--ticks", "1", "--swaps", "1", "--widths", "1"]
    assert gpu_parts.main([part, *small, *more]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line["row"]["name"]: line["row"] for line in made}


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "_WARM_UPS", 0)
    monkeypatch.setattr(gpu_parts, "_WARM_UPS", 0)


def test_the_kernels_agree_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured("check", folder, capsys)
    assert rows["kernels_agree_own"]["met"]
    assert rows["kernels_agree_int8"]["met"]
    assert {"graph_capture_s_own", "graph_capture_s_int8"} <= set(rows)


def test_kernels_one_by_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured("kernels", folder, capsys)
    names = {f"ring_decode_us_rows_1_age_3_{kept}" for kept in ("fp32", "int8")}
    assert set(rows) == names | {"rms_norm_us_rows_1", "swiglu_us_rows_1"}
    assert all(row["ratio"] > 0 for row in rows.values())


def test_ticks_stand_beside_upstreams(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured("ticks", folder, capsys)
    assert rows["tick_p99_ms_rows_1"]["peer"] == "moshi"
    assert rows["tick_p99_ms_rows_1"]["peer_value"] > 0
    assert "own rings, 1 ticks" in rows["tick_p50_ms_rows_1"]["remark"]


def test_rings_that_do_not_fit_become_int8(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 rows of Moshi 7B fit into 80 GB as int8 alone; upstream's do not fit at all."""
    made = KernelStep.__init__

    def narrow(self: KernelStep, *given: Any, kept: torch.dtype | None = None, **room: Any) -> None:
        if kept is None:
            raise torch.OutOfMemoryError
        made(self, *given, kept=kept, **room)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(KernelStep, "__init__", narrow)
    monkeypatch.setattr(UpstreamStep, "__init__", full)
    row = measured("ticks", folder, capsys)["tick_p99_ms_rows_1"]
    assert row["remark"] == "int8 rings, 1 ticks, upstream's rings do not fit"
    assert row["value"] > 0
    assert row["peer_value"] is None


def test_swaps_under_load(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured("swaps", folder, capsys)
    assert rows["swaps"]["value"] == 1
    assert {"late_frames_caused", "tick_p99_ms_while_swapping", "flip_ms_max"} <= set(rows)


def test_swaps_that_end_before_the_first_look(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter may let the writing thread finish before it starts a tick beside it."""

    class AtOnce(threading.Thread):
        def start(self) -> None:
            super().start()
            self.join()

    monkeypatch.setattr(threading, "Thread", AtOnce)
    assert "1 ticks with" in measured("swaps", folder, capsys)["late_frames_caused"]["remark"]


def report(path: Path) -> GpuReport:
    return msgspec.json.decode(path.read_bytes(), type=GpuReport)


def test_a_part_that_crashes_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes: one part cannot load its model, the one after it runs, and both stand in the file."""
    out = tmp_path / "gpu.json"
    parts = ["--parts", "device", "kernels", "ticks", "--rows", "1"]
    size = ["--ages", "3", "--ticks", "1", "--checkpoint", str(tmp_path / "nothing")]
    assert gpu.main([*parts, *size, "--out", str(out), "--json"]) == 1
    found = report(out)
    assert [(part.name, part.status) for part in found.parts] == [
        ("device", "ok"), ("ticks of 1 rows", "failed"), ("kernels", "failed"),
    ]  # fmt: skip
    assert "CheckpointError" in found.parts[1].problem
    assert found.device is not None
    assert found.device.interpreted
    assert found.device.triton
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["parts"][1]["status"] == "failed"
    assert "ticks of 1 rows: failed" in said.err


def test_a_part_that_hangs_is_stopped_and_one_without_time_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_SHORTEST_S", 0.1)
    monkeypatch.setitem(gpu._LIMIT_S, "device", 0.3)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--parts", "device", "check", "--minutes", "0.006", "--out", str(out)]) == 1
    assert [(part.name, part.status) for part in report(out).parts] == [("device", "timed out"), ("check", "skipped")]


def test_figures_are_kept_as_they_come(folder: Path, tmp_path: Path) -> None:
    """What a part gave before it was stopped stays."""
    options = gpu._parser().parse_args(["--checkpoint", str(folder), "--rows", "1", "--ages", "3", "--ticks", "1"])
    found = gpu._Found(rows={}, parts=[])
    part = gpu.run_part("kernels", 1, options, found, limit_s=280)
    assert (part.status, part.rows) == ("ok", 4), part.problem
    for line in ("not json", '{"row": {"name": 3}}', '{"other": 1}'):
        gpu._take(line, found)
    assert len(found.rows) == 4


def test_the_most_telling_parts_come_first() -> None:
    assert list(gpu.plan([1, 16, 32, 64], sorted(gpu._LIMIT_S))) == [
        ("device", 1), ("check", 2), ("ticks", 1), ("ticks", 32), ("swaps", 32), ("kernels", 1), ("ticks", 16),
        ("ticks", 64),
    ]  # fmt: skip
    assert list(gpu.plan([8], ["ticks", "device"])) == [("device", 1), ("ticks", 8)]


def test_sizes_are_the_checkpoints(folder: Path) -> None:
    assert gpu_parts.sizes("random-7b") is gpu_parts.sizes("hf:owner/name") is MOSHI_7B
    model = gpu_parts.sizes(str(folder))
    assert (model.dim, model.heads, model.layers, model.context, model.hidden) == (48, 4, 1, 6, 132)


def test_without_a_gpu_it_says_so() -> None:
    """Exit code 2 and sentences, and no figures that nobody measured."""
    quiet = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--json"],
        env=quiet | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert "kernels.roofline" in done.stderr
    assert not done.stdout
