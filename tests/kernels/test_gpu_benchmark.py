"""The GPU benchmark, whole, in Triton's interpreter on a tiny model: that it runs and what it prints, never a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_kernels
from kernels.roofline import Model
from tests.tiny_checkpoint import write_tiny_checkpoint

TINY = Model(
    name="tiny", dim=32, heads=2, layers=1, hidden=24, context=8, text_card=32, audio_codebooks=4, depth_dim=16,
    depth_layers=1, depth_hidden=16, depth_steps=2, card=32, bytes=4, codec_weight_bytes=0, codec_row_bytes=0,
)  # fmt: skip


@pytest.mark.timeout(300)
def test_every_part_runs_and_names_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swaps, ticks and kernels of a tiny model; upstream's modules are the peer of a tick."""
    folder = write_tiny_checkpoint(tmp_path / "tiny", lm_overrides={"context": 8})
    monkeypatch.setattr(gpu, "_sizes", lambda _checkpoint: TINY)
    monkeypatch.setattr(gpu, "_AGE", 3)
    monkeypatch.setattr(gpu_kernels, "_WARM_UPS", 0)
    monkeypatch.setattr(gpu, "_WARM_UPS", 0)
    size = ["--rows", "1", "--ages", "3", "--ticks", "1", "--swaps", "1"]
    assert gpu.main(["--json", "--checkpoint", str(folder), *size]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    kernels = {"ring_decode_us_rows_1_age_3_fp32", "ring_decode_us_rows_1_age_3_int8", "rms_norm_us_rows_1"}
    assert kernels | {"swiglu_us_rows_1", "tick_p50_ms_rows_1", "tick_p99_ms_rows_1"} <= set(rows)
    assert rows["tick_p99_ms_rows_1"]["peer"] == "moshi"
    assert rows["tick_p99_ms_rows_1"]["peer_value"] > 0
    assert rows["swaps"]["value"] == 1
    assert {"late_frames_caused", "tick_p99_ms_while_swapping", "flip_ms_max"} <= set(rows)


def test_without_a_gpu_it_says_so() -> None:
    """Exit code 2 and a sentence, and no figures that nobody measured."""
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
    assert not done.stdout
