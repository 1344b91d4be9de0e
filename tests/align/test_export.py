"""A trained adapter: the stock package takes it and says the same greedy tokens; what is there is whole."""

import json
from pathlib import Path

import pytest
import torch
from moshi.models import loaders
from safetensors.torch import load_file

from online_align.export import Manifest, write_adapter
from online_align.figures import Figures
from online_align.learner import Pass, reference_of
from online_align.policy import Policy
from online_align.records import PairKind
from online_align.settings import LearnerSettings
from server.engine import Engine
from server.engine.adapters import ADAPTER_WEIGHTS, file_sha256
from server.engine.checkpoint import load_checkpoint
from tests.align.preferences import random_pair
from tests.engine.calls import GREEDY, assert_same, batch, mask
from tests.engine.lora import stock_with
from tests.engine.stock import Call, Stock, sound
from tests.tiny_checkpoint import write_tiny_checkpoint

SETTINGS = LearnerSettings(batch=2, rank=4, learning_rate=3e-2, beta=2.0, anchor=0.0)
FRAMES = 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny: Path) -> Policy:
    policy = Policy(load_checkpoint(tiny, device=torch.device("cpu"), dtype=torch.float32), rank=4)
    pairs = [random_pair(n, kind=PairKind.CUT_OFF, event=1) for n in range(12)]
    Pass(policy, SETTINGS, reference_of(policy, SETTINGS, pairs, name="", base_sha256="x")).run()
    return policy


def export(policy: Policy, tiny: Path, folder: Path) -> str:
    manifest = Manifest(
        id=folder.name, made_at=1.0, parent="", checkpoint="tiny", base_sha256=file_sha256(tiny / "model.safetensors"),
        settings=SETTINGS, pairs={"B": 12}, trained=Figures(loss=0, margin=0, accuracy=0, chosen_logp=0, pairs=12),
    )  # fmt: skip
    config = json.loads((tiny / "config.json").read_text())
    return write_adapter(folder, policy, manifest=manifest, config=config)


def test_the_stock_package_says_the_same(trained: Policy, tiny: Path, tmp_path: Path) -> None:
    sha256 = export(trained, tiny, tmp_path / "a")
    engine = Engine.load(tiny, slots=1, device="cpu", work="native")
    number = engine.load_adapter(tmp_path / "a", sha256=sha256)
    pcm = sound(FRAMES, engine.frame_size, seed=1)
    wanted = stock_with(tiny, tmp_path / "a").converse(pcm)
    engine.open(0, GREEDY, number, seed=1)
    outputs = [engine.step(batch(engine, {0: chunk}), mask(engine, 0)) for chunk in pcm]
    got = Call(torch.stack([out.tokens[0] for out in outputs]), torch.stack([out.pcm[0] for out in outputs]), wanted[2])
    assert_same(got, wanted)
    assert got.tokens.tolist() != Stock(tiny).converse(pcm).tokens.tolist(), "it must have learned something"


def test_the_stock_loader_takes_the_folder(trained: Policy, tiny: Path, tmp_path: Path) -> None:
    export(trained, tiny, tmp_path / "a")
    info = loaders.CheckpointInfo.from_hf_repo(
        str(tiny),
        moshi_weights=tiny / "model.safetensors",
        mimi_weights=tiny / "mimi.safetensors",
        tokenizer=tiny / "tokenizer.model",
        config_path=tmp_path / "a" / "config.json",
        mimi_config_path=tiny / "mimi_config.json",
        lora_weights=str(tmp_path / "a" / ADAPTER_WEIGHTS),
    )
    lm = info.get_moshi(dtype=torch.float32, fuse_lora=False)
    assert lm.text_linear.lora_A.weight.shape[0] == 4
    assert lm.text_linear.lora_B.weight.abs().sum() == 0, "nothing was learned there"


def test_float32_and_every_linear_layer(trained: Policy, tiny: Path, tmp_path: Path) -> None:
    export(trained, tiny, tmp_path / "a")
    parts = load_file(tmp_path / "a" / ADAPTER_WEIGHTS)
    assert {tensor.dtype for tensor in parts.values()} == {torch.float32}
    assert len(parts) == 2 * len(trained.linear_widths)
    learned = {name for name, tensor in parts.items() if tensor.abs().sum() > 0}
    assert learned == set(trained.learned())
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["settings"]["loss"], manifest["pairs"], manifest["version"]) == ("dpo-ln", {"B": 12}, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"], "no temporary folder is left"


def test_written_again_it_is_the_same_file(trained: Policy, tiny: Path, tmp_path: Path) -> None:
    first = export(trained, tiny, tmp_path / "a")
    (tmp_path / ".b.tmp").mkdir()
    (tmp_path / ".b.tmp" / "half").write_bytes(b"left by one who was killed")
    assert export(trained, tiny, tmp_path / "a") == export(trained, tiny, tmp_path / "b") == first
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "config.json",
        "lora.safetensors",
        "manifest.json",
    ]
