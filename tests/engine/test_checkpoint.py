"""Every way a checkpoint folder can be wrong, each refused with its reason."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.engine import Engine
from server.engine.checkpoint import MINI
from server.errors import CheckpointError


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | changes))


def load(folder: Path | str) -> Engine:
    return Engine.load(folder, slots=1, device="cpu")


def test_facts_of_a_good_one(tiny: Path) -> None:
    engine = load(tiny)
    assert engine.checkpoint == str(tiny)
    assert (engine.slots, engine.sample_rate, engine.frame_size, engine.frame_rate) == (1, 16000, 1280, 12.5)
    assert (engine.delay_frames, engine.context_frames) == (1, 24)
    assert (engine.model_codebooks, engine.user_codebooks) == (4, 4)
    assert (engine.text_padding_id, engine.end_of_text_padding_id) == (3, 0)
    assert engine.text_tokenizer.decode(engine.text_tokenizer.encode("hello there")) == "hello there"
    assert engine.device == "cpu"


def test_weights_are_float32_on_a_cpu(tiny: Path) -> None:
    checkpoint = load(tiny)._checkpoint
    for module in (checkpoint.lm, checkpoint.mimi):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        assert not module.training


def test_moshi_rate(tiny_24k: Path) -> None:
    engine = load(tiny_24k)
    assert (engine.sample_rate, engine.frame_size, engine.delay_frames) == (24000, 1920, 2)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder") as refusal:
        load(tmp_path / "nowhere")
    assert refusal.value.path == str(tmp_path / "nowhere")
    assert "hf:" in refusal.value.remedy


@pytest.mark.parametrize(
    "name", ["config.json", "mimi_config.json", "model.safetensors", "mimi.safetensors", "tokenizer.model"]
)
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"no file {name}"):
        load(copy)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", ["a"], 7])
@pytest.mark.parametrize("key", ["moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name"])
def test_name_outside_the_folder(copy: Path, key: str, name: Any) -> None:
    edit(copy, **{key: name})
    with pytest.raises(CheckpointError, match="plain file name"):
        load(copy)


@pytest.mark.parametrize(("text", "reason"), [("{", "not JSON"), ("[]", "JSON list"), ("\ud800", None)])
def test_config_that_is_not_an_object(copy: Path, text: str, reason: str | None) -> None:
    (copy / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=reason):
        load(copy)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("key", ["moshi_name", "mimi_name"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights", "weights.safetensors"])
def test_pickles_are_never_opened(copy: Path, tmp_path: Path, key: str, name: str) -> None:
    trace = tmp_path / "exploded"
    (copy / name).write_bytes(pickle.dumps(Bomb(trace)))
    edit(copy, **{key: name})
    with pytest.raises(CheckpointError):
        load(copy)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb must be live for this to prove something"


def _spoil(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name)


def _missing(weights: dict[str, torch.Tensor]) -> None:
    del weights[min(weights)]


def _extra(weights: dict[str, torch.Tensor]) -> None:
    weights["surprise"] = torch.zeros(1)


def _misshapen(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2)
    weights[name] = weights[name][:, 1:].contiguous()


@pytest.mark.parametrize("name", ["model.safetensors", "mimi.safetensors"])
@pytest.mark.parametrize("change", [_missing, _extra, _misshapen])
def test_weights_that_do_not_fit(copy: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    _spoil(copy, name, change)
    with pytest.raises(CheckpointError, match="does not load") as refusal:
        load(copy)
    assert refusal.value.path.endswith(name)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("name", ["model.safetensors", "mimi.safetensors", "tokenizer.model"])
def test_torn_file(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="does not load"):
        load(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"unheard_of": 1},
        {"dim": 50},
        {"dim": "wide"},
        {"delays": [0, 0]},
        {"delays": [0] * 9},
        {"context": None},
        {"text_card": 20},
        {"norm": "no such norm"},
        {"n_q": 4},
        {"card": 16},
    ],
    ids=str,
)
def test_config_that_does_not_make_a_dialogue_model(copy: Path, changes: dict[str, Any]) -> None:
    edit(copy, **changes)
    with pytest.raises(CheckpointError):
        load(copy)


@pytest.mark.parametrize(
    "changes", [{"lora": True}, {"quantize": True}, {"conditioners": {"a": {}}}, {"fuser": {"sum": ["a"]}}], ids=str
)
def test_variants_that_cannot_be_stepped(copy: Path, changes: dict[str, Any]) -> None:
    edit(copy, **changes)
    with pytest.raises(CheckpointError, match="plain dialogue model"):
        load(copy)


@pytest.mark.parametrize("changes", [{"sample_rate": 16001}, {"frame_rate": 10.0}, {"seanet": {}}], ids=str)
def test_codec_config_that_does_not_fit(copy: Path, changes: dict[str, Any]) -> None:
    edit(copy, "mimi_config.json", **changes)
    with pytest.raises(CheckpointError):
        load(copy)


def test_codec_and_model_of_different_books(copy: Path) -> None:
    _spoil(copy, "mimi.safetensors", _halve_codebooks)
    config = json.loads((copy / "mimi_config.json").read_text())
    edit(copy, "mimi_config.json", quantizer=config["quantizer"] | {"bins": 16})
    with pytest.raises(CheckpointError, match="codebooks of 16 and a model of 32"):
        load(copy)


def _halve_codebooks(weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        if name.endswith(("embedding_sum", "cluster_usage")):
            weights[name] = tensor[:16].contiguous()


def test_hub_name_that_is_none() -> None:
    """The hub's client refuses the name before it looks at the network."""
    with pytest.raises(CheckpointError, match="repository"):
        load("hf:not/a/repository")


def test_mini_is_a_folder_of_the_package() -> None:
    assert MINI.parts[-3:] == ("server", "checkpoints", "mini")


def test_loading_needs_no_network(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"looked for {args} on the hub")

    monkeypatch.setattr("moshi.models.loaders.hf_hub_download", refuse)
    assert load(tiny).slots == 1
