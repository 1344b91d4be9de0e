"""The cost model: its figures are of the real models, its traffic is what the kernel moves, its page is not stale."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from moshi.models import loaders
from torch import Tensor

from kernels import ring_decode as module
from kernels import roofline
from kernels.ring_decode import ring_decode
from kernels.roofline import CARDS, MINI, MOSHI_7B, Model, codec_ring_bytes, fits, in_time, ring_bytes, tick_s
from kernels.rope import rope_table
from tests.kernels.interpreter import interpreter

DOCS = Path(__file__).parents[2] / "docs"
CHECKPOINT = Path(__file__).parents[2] / "server" / "checkpoints" / "mini" / "config.json"
CODEC = CHECKPOINT.with_name("mimi_config.json")


def gate_width(dim: int, feed_forward: int) -> int:
    """As upstream's `ActivationGating`."""
    return 21 * dim // 8 if feed_forward == 4 * dim else 2 * feed_forward // 3


def check(model: Model, config: dict[str, Any], codec: dict[str, Any]) -> None:
    assert (model.dim, model.heads, model.layers) == (config["dim"], config["num_heads"], config["num_layers"])
    assert model.hidden == gate_width(model.dim, int(config["hidden_scale"] * model.dim))
    assert (model.context, model.text_card, model.card) == (config["context"], config["text_card"], config["card"])
    assert (model.audio_codebooks, model.depth_steps) == (config["n_q"], config["dep_q"])
    assert (model.depth_dim, model.depth_layers) == (config["depformer_dim"], config["depformer_num_layers"])
    assert model.depth_hidden == gate_width(model.depth_dim, config["depformer_dim_feedforward"])
    transformer = codec["transformer"]
    assert (model.codec_dim, model.codec_layers) == (transformer["d_model"], transformer["num_layers"])
    assert model.codec_context == transformer["context"]


def test_the_models_are_the_real_ones() -> None:
    check(MOSHI_7B, loaders._lm_kwargs, loaders._mimi_config)


@pytest.mark.mini
def test_mini_is_the_embedded_model() -> None:
    check(MINI, json.loads(CHECKPOINT.read_text()), json.loads(CODEC.read_text()))


@contextmanager
def counted(*rings: Tensor) -> Iterator[dict[str, int]]:
    """Bytes of these tensors that programs load and store."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    moved = {"loaded": 0, "stored": 0}

    def count(kind: str, pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        for ring in rings:
            first = ring.data_ptr()
            inside = (pointers.data >= first) & (pointers.data < first + ring.numel() * ring.element_size())
            moved[kind] += size * int((inside & mask.data).sum())

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        count("loaded", pointers, mask)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        count("stored", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store
    try:
        yield moved
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


@pytest.mark.parametrize("age", [0, 1, 130, 299, 300, 5000])
@pytest.mark.parametrize("int8", [False, True])
def test_the_kernel_loads_every_valid_number_once_and_no_other(age: int, int8: bool) -> None:
    """Counted in the interpreter against the model, for one head of Moshi 7B in a shorter ring."""
    slots, width = 300, 128
    kind = torch.int8 if int8 else torch.float16
    rings = [torch.zeros(1, 1, slots, width, dtype=kind) for _ in "kv"]
    scales = [torch.zeros(1, 1, slots) for _ in "kv"] if int8 else []
    offset, moving = torch.tensor([age]), torch.ones(1, dtype=torch.bool)
    k_scale, v_scale = scales if int8 else (None, None)
    qkv = torch.randn(1, 1, 3, 1, width).half()
    partial, weight = torch.zeros(1, 1, module.SPLITS, 1, width), torch.zeros(1, 1, module.SPLITS, 1)
    with counted(*rings, *scales) as moved:
        table = rope_table(offset, 1, width)
        ring_decode(qkv, *table, rings[0], rings[1], k_scale, v_scale, offset, moving, partial, weight)
    slot = 2 * (width + 4 if int8 else 2 * width)
    assert moved == {"loaded": min(age, slots - 1) * slot, "stored": slot}
    one_head = Model(**{name: getattr(MOSHI_7B, name) for name in MOSHI_7B.__struct_fields__} | {
        "dim": width, "heads": 1, "context": slots})  # fmt: skip
    assert ring_bytes(one_head, age, int8=int8).needed == sum(moved.values()) + 4 * width * 2


@pytest.mark.parametrize("age", [0, 1, 9, 10, 11, 4000])
def test_so_it_does_for_the_codecs_two_positions(age: int) -> None:
    slots, width = 20, 16
    rings = [torch.zeros(1, 1, slots, width) for _ in "kv"]
    offset, moving = torch.tensor([2 * age]), torch.ones(1, dtype=torch.bool)
    partial, weight = torch.zeros(1, 1, module.SPLITS, 2, width), torch.zeros(1, 1, module.SPLITS, 2)
    with counted(*rings) as moved:
        table = rope_table(offset, 2, width)
        ring_decode(
            torch.randn(1, 2, 3, 1, width), *table, rings[0], rings[1], None, None, offset, moving, partial, weight
        )
    model = msgspec.structs.replace(MOSHI_7B, codec_dim=width, codec_context=slots)
    ring = codec_ring_bytes(model, age)
    assert ring.needed == sum(moved.values()) + 2 * 4 * width * 4
    assert ring.needed <= ring.moved
    assert ring.moved <= ring.stock or age > 8


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("age", [125, 562, 1500, 2999, 3000, 45_000])
def test_modelled_traffic_is_within_a_twentieth_of_the_least(age: int, int8: bool) -> None:
    ring = ring_bytes(MOSHI_7B, age, int8=int8)
    assert ring.needed <= ring.moved <= 1.05 * ring.needed


def test_modelled_traffic_45_s_into_a_call_is_at_most_a_fifth_of_stocks() -> None:
    for age in range(563):
        ring = ring_bytes(MOSHI_7B, age)
        assert ring.moved <= 0.2 * ring.stock


def test_more_work_takes_longer() -> None:
    for card in CARDS:
        old, young = [3000] * 32, [100] * 32
        assert tick_s(MOSHI_7B, card, young) < tick_s(MOSHI_7B, card, old)
        assert tick_s(MOSHI_7B, card, old, int8=True) < tick_s(MOSHI_7B, card, old)
        assert tick_s(MOSHI_7B, card, young) < tick_s(MOSHI_7B, card, young, stock=True)
        assert fits(MOSHI_7B, card) < fits(MOSHI_7B, card, int8=True)
        many = in_time(MOSHI_7B, card, 3000)
        assert tick_s(MOSHI_7B, card, [3000] * many) <= roofline.FRAME_S < tick_s(MOSHI_7B, card, [3000] * (many + 1))


def test_the_page_is_what_the_model_says_and_says_modelled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert roofline.main(["--write", str(tmp_path)]) == 0
    page = (tmp_path / "roofline.md").read_text()
    assert page == (DOCS / "roofline.md").read_text(), "run: python -m kernels.roofline --write docs"
    assert all("odelled" in heading for heading in re.findall(r"^#.*", page, re.MULTILINE))
    assert (tmp_path / "roofline.svg").stat().st_size > 1000
    capsys.readouterr()
    assert roofline.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "modelled"
