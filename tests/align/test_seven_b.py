"""The 7 B path: its real configuration without numbers, and a narrow twin of its depth and layout with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from moshi.models import loaders
from safetensors.torch import load_file

from online_align.batches import collate, pack
from online_align.export import Manifest, write_adapter
from online_align.learner import Pass, optimiser_groups, reference_of
from online_align.policy import Policy
from online_align.settings import LearnerSettings
from online_align.training_state import Standing, save
from online_align.workers import Workers
from server.engine import Engine
from server.engine.adapters import ADAPTER_WEIGHTS, file_sha256
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.params import SamplingParams
from tests.align.preferences import make_pair, spoken
from tests.engine.calls import GREEDY, batch, mask
from tests.engine.lora import stock_with
from tests.engine.stock import sound
from tests.tiny_checkpoint import write_tiny_checkpoint

REAL = dict(loaders._lm_kwargs)
"""Upstream's own configuration of the 7 B model."""
NARROW = {
    "dim": 32, "num_heads": 4, "hidden_scale": 4.125, "depformer_dim": 16, "depformer_num_heads": 2,
    "depformer_dim_feedforward": 48, "text_card": 32000, "card": 32, "n_q": 8, "dep_q": 4, "depformer_context": 4,
    "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
}  # fmt: skip
"""What of it is made narrow; depth, per-step weights, delays, context and vocabulary of the text stay."""


class Codec:
    """What the learner asks of a codec."""

    frame_rate = 12.5


def unreal() -> Checkpoint:
    """The real model on the meta device: shapes, types and names, and no memory."""
    with torch.device("meta"):
        lm = loaders.get_moshi_lm(None, REAL, device="meta", dtype=torch.bfloat16)
    return Checkpoint(
        name="meta", lm_path=Path("none"), lm=lm, mimi=Codec(), text_tokenizer=None, sampling=SamplingParams()
    )


@pytest.fixture(scope="module")
def real() -> Policy:
    return Policy(unreal(), rank=128, scaling=2.0)


def test_the_real_model_is_covered(real: Policy) -> None:
    """32 layers of width 4096; adapters in float32, the model in bfloat16, and upstream's names for both."""
    assert len(real.layers) == 32
    learned = real.learned()
    assert len(learned) == 32 * 4 * 2
    assert {part.dtype for part in learned.values()} == {torch.float32}
    assert {part.dtype for part in real.parameters() if not part.requires_grad} == {torch.bfloat16}
    widths = 3 * 4096 + 4096 + 2 * 4096 + 2 * 11264 + 4096 + 11264 + 4096
    assert sum(part.numel() for part in learned.values()) == 32 * 128 * widths
    base = sum(part.numel() for part in real.parameters() if not part.requires_grad)
    assert 6.5e9 < base < 7.5e9, "the temporal transformer and its tables"
    names = {f"{name}.{half}.weight" for name in real.linear_widths for half in ("lora_A", "lora_B")}
    assert set(learned) < names


def test_a_step_of_the_real_model_has_the_right_shapes(real: Policy) -> None:
    """Forward and backward over the real widths, on meta tensors."""
    draw = np.random.default_rng(0)
    columns = [draw.integers(0, 2000, (size, 17)) for size in (20, 6, 5)]
    meta = collate([pack(make_pair("one", *columns), real.grid)], real.grid, torch.device("meta"))
    logp = real(meta)
    assert logp.shape == (1, 2, 6)
    assert logp.dtype == torch.float32
    torch.autograd.backward(logp.sum())
    assert all(part.grad is not None and part.grad.shape == part.shape for part in real.learned().values())


def test_its_optimiser_and_its_state(real: Policy) -> None:
    groups = optimiser_groups(real, LearnerSettings(learning_rate=2e-6))
    assert [group["lr"] for group in groups] == [2e-6]
    numbers = sum(part.numel() for part in groups[0]["params"])
    assert 3 * 4 * numbers < 4.3e9, "adapter and both moments, bytes: beside 15 GB of model on one GPU"


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {name: value for name, value in REAL.items() if name not in NARROW} | NARROW
    return write_tiny_checkpoint(tmp_path_factory.mktemp("twin"), lm_overrides=config)


def test_the_narrow_twin_goes_the_whole_way(twin: Path, tmp_path: Path) -> None:
    """Load, speak, train a step, save, export, and speak with the adapter here and in the stock package."""
    engine = Engine.load(twin, slots=1, device="cpu", work="native")
    said, logprob = spoken(engine, 24, seed=1)
    policy = Policy(load_checkpoint(twin, device=torch.device("cpu"), dtype=torch.float32), rank=8)
    assert (len(policy.layers), policy.grid.context) == (32, 3000)
    pairs = [make_pair(str(at), said[:at], said[at : at + 6], said[at + 6 : at + 11]) for at in (4, 8)]
    settings = LearnerSettings(batch=2, rank=8, learning_rate=0.03, checkpointing=True)
    base = file_sha256(twin / "model.safetensors")
    pairs = reference_of(policy, settings, pairs, name="", base_sha256=base)
    for pair, at in zip(pairs, (4, 8), strict=True):
        assert pair.reference is not None
        np.testing.assert_allclose(pair.reference.chosen_T, logprob[at : at + 6], atol=1e-4)
    figures = Pass(policy, settings, pairs, state=tmp_path / "pass.safetensors").run()
    assert figures.pairs == 2
    state = load_file(tmp_path / "pass.safetensors")
    assert len(state) == 3 * len(policy.learned()), "adapter and both moments"
    manifest = Manifest(
        id="one", made_at=0, parent="", checkpoint="twin", base_sha256=base,
        settings=settings, pairs={"A": 2}, trained=figures,
    )  # fmt: skip
    config = json.loads((twin / "config.json").read_text())
    sha256 = write_adapter(tmp_path / "one", policy, manifest=manifest, config=config)
    assert file_sha256(tmp_path / "one" / ADAPTER_WEIGHTS) == sha256
    pcm = sound(10, engine.frame_size, seed=2)
    engine.open(0, GREEDY, engine.load_adapter(tmp_path / "one"), seed=1)
    got = [engine.step(batch(engine, {0: chunk}), mask(engine, 0)).tokens[0].tolist() for chunk in pcm]
    assert got == stock_with(twin, tmp_path / "one").converse(pcm).tokens.tolist()


def test_a_saved_state_is_whole(twin: Path, tmp_path: Path) -> None:
    policy = Policy(load_checkpoint(twin, device=torch.device("cpu"), dtype=torch.float32), rank=2)
    optimiser = torch.optim.AdamW(optimiser_groups(policy, LearnerSettings(rank=2)))
    save(tmp_path / "s.safetensors", policy, optimiser, Standing(plan="p", step=0), Workers())
    assert set(load_file(tmp_path / "s.safetensors")) == set(policy.learned())
