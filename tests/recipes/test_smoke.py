"""The whole recipe at toy size: every stage, killed and resumed, and nothing written outside its folder."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.mini import wordings
from server.engine import Engine, SamplingParams

ROOT = Path(__file__).parents[2]
STAGES = "train_encoder train_decoder tokens train_lm export manifest assets speech evaluate scenes".split()
SYNTHESIS = all(importlib.util.find_spec(name) for name in ("hibari", "pocketsphinx", "soundfile"))


def _command(size: str, work: Path) -> list[str]:
    return [sys.executable, "-m", "recipes.mini.run", "--size", size, "--work", str(work)]


def _repository() -> dict[str, str]:
    """What a run could overwrite: the shipped model, its manifest and the shipped questions."""
    written = [ROOT / f for f in ("server/checkpoints/mini", "tests/assets/speech", "online_align/speech")]
    files = [p for folder in written for p in folder.rglob("*") if p.is_file()] + [ROOT / "recipes/mini/manifest.json"]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _steps(log: Path) -> list[int]:
    return [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():  # the test's timeout is the limit: stages have budgets of processor time
        assert process.poll() is None, "the recipe ended before it could be killed"
        time.sleep(0.05)


def _alive(work: Path) -> list[int]:
    """Processes that were started for this folder."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"recipes.mini.run" not in words and any(str(work).encode() in word for word in words):
            found.append(int(line.parent.name))
    return found


def _engine_steps(checkpoint: Path) -> None:
    """The engine opens the folder and makes sound with it."""
    engine = Engine.load(str(checkpoint), slots=1, device="cpu")
    engine.open(0, SamplingParams())
    sound, active = np.zeros((1, engine.frame_size), np.float32), np.ones(1, bool)
    frames = [engine.step(sound, active) for _ in range(4)]
    assert np.isfinite(np.asarray(frames[-1].pcm)).all()
    assert np.asarray(frames[-1].pcm).any()


@pytest.mark.slow
@pytest.mark.timeout(900)  # a hundred seconds of two free cores
def test_every_stage_runs_is_killed_and_goes_on(tmp_path: Path) -> None:
    """Killed while the encoder and then while the language model trains; the third run ends with a checkpoint."""
    before = _repository()
    for saved in ("codec/encoder.pt", "lm/lm.pt"):
        first = subprocess.Popen(_command("smoke", tmp_path), stdout=subprocess.DEVNULL)
        _wait_for(tmp_path / saved, first)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        deadline = time.monotonic() + 20
        while sys.platform == "linux" and _alive(tmp_path):
            assert time.monotonic() < deadline, "stages outlived the run that started them"
            time.sleep(0.1)
    logs = {"codec/encoder.jsonl": "codec/encoder.pt", "lm/lm.jsonl": "lm/lm.pt"}
    steps = {name: _steps(tmp_path / name) for name in logs}
    kept = {name: torch.load(tmp_path / saved, weights_only=False)["step"] for name, saved in logs.items()}
    subprocess.run(_command("smoke", tmp_path), check=True, stdout=subprocess.DEVNULL)

    for name, earlier in steps.items():
        later = _steps(tmp_path / name)
        assert later[: len(earlier)] == earlier
        fresh = later[len(earlier) :]
        assert fresh == sorted(fresh)
        assert not fresh or fresh[0] > kept[name], f"{name} began again"
    assert all((tmp_path / f"{stage}.log").exists() for stage in STAGES)
    _engine_steps(tmp_path / "checkpoint")
    evaluation = json.loads((tmp_path / "checkpoint.evaluation.json").read_text())
    assert evaluation["trained voices"]["all"]["asked"] >= 4
    assert json.loads((tmp_path / "checkpoint.scenes.json").read_text())["silence"]["scenes"] == 1
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert not set(manifest) & set(wordings.heldout()["voices"]["heldout"])
    _variant_goes_on(tmp_path)
    assert _repository() == before


def _variant_goes_on(work: Path) -> None:
    """Without faults, from the finished model: another language model, the same codec and words."""
    subprocess.run([*_command("smoke", work), "--clean"], check=True, stdout=subprocess.DEVNULL)
    clean, finished = work / "checkpoint_clean", work / "checkpoint"
    same = {p.name: p.read_bytes() == (finished / p.name).read_bytes() for p in clean.iterdir() if p.is_file()}
    assert not same["model.safetensors"]
    assert same["mimi.safetensors"]
    assert same["tokenizer.model"]
    first = json.loads((work / "lm_clean" / "lm.jsonl").read_text().splitlines()[0])
    assert first["step"] <= 2, "a variant has a schedule of its own"


def test_a_variant_without_the_finished_model_is_refused(tmp_path: Path) -> None:
    """It says what is missing and trains nothing."""
    refused = subprocess.run([*_command("smoke", tmp_path), "--clean"], check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "a variant needs the finished model" in refused.stderr
    assert not (tmp_path / "bank").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # a hundred seconds of two free cores
@pytest.mark.skipif(shutil.which("flite") is None or not SYNTHESIS, reason="needs flite and the recipes extra")
def test_the_same_with_real_synthesis(tmp_path: Path) -> None:
    """One voice of flite asks and the model's own voice answers, from nothing to figures."""
    subprocess.run(_command("smoke-flite", tmp_path), check=True, stdout=subprocess.DEVNULL)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest) == {"hibari heart", "flite kal16"}
    assert len(manifest["flite kal16"]) >= 10
    evaluation = json.loads((tmp_path / "checkpoint.evaluation.json").read_text())
    assert evaluation["held-out voices"]["all"]["asked"] >= 4


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Two writers on the same files would spoil both."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = subprocess.run(_command("smoke", tmp_path), check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "another run works in" in refused.stderr
