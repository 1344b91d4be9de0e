"""Adapters: what upstream's own do, each for its own row, changed between two frames, and refused when bad."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from server.engine import Engine, SamplingParams
from server.engine.adapters import ADAPTER_WEIGHTS, file_sha256
from server.errors import AdapterError
from tests.engine.calls import GREEDY, assert_same, batch, converse, mask
from tests.engine.lora import stock_with, tensors, write_adapter
from tests.engine.stock import Call, Stock, sound

SLOTS = 4
FRAMES = 24


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One that changes everything, one of another rank, and one for the temporal transformer alone."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        write_adapter(folder / "all", tiny, tensors(tiny, seed=1)),
        write_adapter(folder / "wide", tiny, tensors(tiny, seed=2, rank=33)),
        write_adapter(folder / "temporal", tiny, tensors(tiny, seed=3, only="transformer.")),
    ]


@pytest.fixture
def engine(tiny: Path, adapters: list[Path]) -> Iterator[Engine]:
    engine = Engine.load(tiny, slots=SLOTS, device="cpu", work="native")
    for folder in adapters:
        engine.load_adapter(folder)
    yield engine
    for slot in engine.open_slots:
        engine.close(slot)


def say(engine: Engine, slot: int, adapter: int | None, pcm: torch.Tensor, params: SamplingParams = GREEDY) -> Call:
    """A whole conversation with one adapter, beside others with all the others."""
    engine.open(slot, params, adapter, seed=1)
    others = [other for other in range(SLOTS) if other != slot]
    for place, other in enumerate(others):
        engine.open(other, SamplingParams(text_temperature=1.0), (None, 1, 2, 3)[place], seed=other)
    outputs = []
    for frame, chunk in enumerate(pcm):
        heard = {other: sound(1, engine.frame_size, 100 * frame + other)[0] for other in others}
        outputs.append(engine.step(batch(engine, heard | {slot: chunk}), mask(engine, *range(SLOTS))))
    for each in range(SLOTS):
        engine.close(each)
    return Call(
        torch.stack([out.tokens[slot] for out in outputs]),
        torch.stack([out.pcm[slot] for out in outputs]),
        torch.stack([out.logprob[slot] for out in outputs]),
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_as_upstreams_own(engine: Engine, tiny: Path, adapters: list[Path], place: int) -> None:
    pcm = sound(FRAMES, engine.frame_size, seed=1)
    wanted = stock_with(tiny, adapters[place]).converse(pcm)
    got = say(engine, 2, place + 1, pcm)
    assert_same(got._replace(logprob=wanted.logprob), wanted)
    assert got.tokens.tolist() != Stock(tiny).converse(pcm).tokens.tolist(), "it must change something"


def test_the_stock_loader_takes_the_folder(tiny: Path, adapters: list[Path]) -> None:
    from moshi.models import loaders

    info = loaders.CheckpointInfo.from_hf_repo(
        str(tiny),
        moshi_weights=tiny / "model.safetensors",
        mimi_weights=tiny / "mimi.safetensors",
        tokenizer=tiny / "tokenizer.model",
        config_path=adapters[0] / "config.json",
        mimi_config_path=tiny / "mimi_config.json",
        lora_weights=str(adapters[0] / ADAPTER_WEIGHTS),
    )
    assert info.get_moshi(dtype=torch.float32, fuse_lora=False).text_linear.lora_A.weight.shape[0] == 5


@pytest.mark.parametrize("adapter", [None, 1, 2, 3])
def test_neighbours_adapters_change_no_bit(engine: Engine, adapter: int | None) -> None:
    pcm = sound(FRAMES, engine.frame_size, seed=2)
    params = SamplingParams(text_temperature=1.2, audio_temperature=1.2)
    engine.open(0, params, adapter, seed=1)
    alone = [engine.step(batch(engine, {0: chunk}), mask(engine, 0)) for chunk in pcm]
    engine.close(0)
    for slot in (0, 3):
        beside = say(engine, slot, adapter, pcm, params)
        assert beside.tokens.tolist() == [out.tokens[0].tolist() for out in alone]
        np.testing.assert_array_equal(beside.logprob.numpy(), torch.stack([out.logprob[0] for out in alone]).numpy())


def test_no_adapter_is_the_model_as_it_was_loaded(engine: Engine, tiny: Path) -> None:
    pcm = sound(FRAMES, engine.frame_size, seed=3)
    wanted = Stock(tiny).converse(pcm)
    assert_same(say(engine, 1, None, pcm)._replace(logprob=wanted.logprob), wanted)


def test_changed_between_two_frames(engine: Engine) -> None:
    """Frames before the change are the old one's; there and back again leaves the past as it was made."""
    pcm = sound(FRAMES, engine.frame_size, seed=4)
    half = FRAMES // 2
    old, new = say(engine, 0, 1, pcm), say(engine, 0, 2, pcm)
    engine.open(0, GREEDY, 1, seed=1)
    said = []
    for frame, chunk in enumerate(pcm):
        if frame == half:
            engine.use_adapter(0, 2)
        said.append(engine.step(batch(engine, {0: chunk}), mask(engine, 0)).tokens[0].tolist())
    settled = half + engine.delay_frames
    assert said[:half] == old.tokens[:half].tolist()
    assert said[settled:] != old.tokens[settled:].tolist()
    assert said != new.tokens.tolist()


def test_a_thousand_changes_leave_the_neighbour_alone(engine: Engine) -> None:
    pcm = sound(FRAMES, engine.frame_size, seed=5)
    wanted = say(engine, 0, 3, pcm).tokens.tolist()
    engine.open(0, GREEDY, 3, seed=1)
    engine.open(1, GREEDY, None, seed=1)
    said = []
    for chunk in pcm:
        for change in range(1000 // FRAMES + 1):
            engine.use_adapter(1, (None, 1, 2, 3)[change % 4])
        out = engine.step(batch(engine, {0: chunk, 1: chunk}), mask(engine, 0, 1))
        said.append(out.tokens[0].tolist())
    assert said == wanted


def test_loaded_by_another_thread_while_people_talk(tiny: Path, adapters: list[Path]) -> None:
    engine = Engine.load(tiny, slots=2, device="cpu", work="native", max_adapters=2)
    first = engine.load_adapter(adapters[0])
    pcm = sound(3 * FRAMES, engine.frame_size, seed=6)
    engine.open(0, GREEDY, first, seed=1)
    wanted = [engine.step(batch(engine, {0: chunk}), mask(engine, 0)).tokens[0].tolist() for chunk in pcm]
    engine.close(0)
    engine.open(0, GREEDY, first, seed=1)
    stop = threading.Event()
    loads = []

    def load_and_drop() -> None:
        while not stop.is_set():
            loads.append(number := engine.load_adapter(adapters[1]))
            engine.drop_adapter(number)

    thread = threading.Thread(target=load_and_drop)
    thread.start()
    try:
        said = [engine.step(batch(engine, {0: chunk}), mask(engine, 0)).tokens[0].tolist() for chunk in pcm]
        while len(loads) < 3 and thread.is_alive():
            engine.step(batch(engine, {0: pcm[0]}), mask(engine, 0))
    finally:
        stop.set()
        thread.join()
    assert said == wanted
    assert len(loads) >= 3


def test_what_is_ready(engine: Engine, adapters: list[Path]) -> None:
    assert {number: info.name for number, info in engine.adapters.items()} == {1: "all", 2: "wide", 3: "temporal"}
    assert engine.adapters[2].rank == 33
    with pytest.raises(AdapterError, match=r"one that is ready \(1, 2, 3\)"):
        engine.open(0, adapter=4)
    assert engine.open_slots == ()
    fourth = engine.load_adapter(adapters[0])
    with pytest.raises(AdapterError, match="at most 4 at once"):
        engine.load_adapter(adapters[0])
    engine.open(0, adapter=fourth)
    with pytest.raises(AdapterError, match=r"no slot uses, and \[0\] do"):
        engine.drop_adapter(fourth)
    engine.use_adapter(0, None)
    engine.drop_adapter(fourth)
    with pytest.raises(AdapterError, match="ready"):
        engine.use_adapter(0, fourth)


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / ADAPTER_WEIGHTS
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    parts = load_file(path)
    change(parts)
    save_file(parts, path, metadata=metadata)


def _configure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


FIRST_A, FIRST_B = "text_linear.lora_A.weight", "text_linear.lora_B.weight"


def _folder_for_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json that cannot be read"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json that cannot be read"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "lora = None"),
    "not an adapter": (lambda folder: _configure(folder, lora=False), "lora = False"),
    "no rank": (lambda folder: _configure(folder, lora_rank=None), "lora_rank = None.*1 to 128"),
    "a rank too high": (lambda folder: _configure(folder, lora_rank=129), "lora_rank = 129"),
    "another rank": (
        lambda folder: _configure(folder, lora_rank=6),
        r"lora_A of torch.float32 \[5, .*expected floats \[6",
    ),
    "a config that nests for ever": (
        lambda folder: (folder / "config.json").write_text("[" * 200_000),
        "config.json that cannot be read",
    ),
    "a config without end": (
        lambda folder: (folder / "config.json").write_bytes(b" " * (2 << 20)),
        "more than 1048576 bytes",
    ),
    "a config that is no file": (
        _folder_for_config,
        "no regular file",
    ),
    "a scaling that makes infinities": (lambda folder: _configure(folder, lora_scaling=1e300), "lora_scaling = 1e"),
    "no scaling": (lambda folder: _configure(folder, lora_scaling="2"), "lora_scaling = '2'"),
    "no weights": (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), "no lora.safetensors"),
    "cut short": (
        lambda folder: (folder / ADAPTER_WEIGHTS).write_bytes((folder / ADAPTER_WEIGHTS).read_bytes()[:-9]),
        "cannot be read",
    ),
    "a pickle": (lambda folder: torch.save({}, folder / ADAPTER_WEIGHTS), "cannot be read"),
    "a part missing": (lambda folder: _change(folder, lambda parts: parts.pop(FIRST_B)), f"1 missing.*{FIRST_B}"),
    "a part too many": (
        lambda folder: _change(folder, lambda parts: parts.update(extra=torch.zeros(1))),
        "1 unknown tensors, among them extra",
    ),
    "not a number": (
        lambda folder: _change(folder, lambda parts: parts[FIRST_A].view(-1)[3:4].fill_(torch.nan)),
        "text_linear.lora_A with numbers that are not finite",
    ),
    "infinite as a float32": (
        lambda folder: _change(folder, lambda parts: parts.update({FIRST_A: parts[FIRST_A].double() * 1e300})),
        "text_linear.lora_A with numbers that are not finite",
    ),
    "whole numbers": (
        lambda folder: _change(folder, lambda parts: parts.update({FIRST_A: parts[FIRST_A].int()})),
        "lora_A of torch.int32",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_one_is_refused_and_nobody_notices(tiny: Path, tmp_path: Path, adapters: list[Path], what: str) -> None:
    spoil, message = BAD[what]
    folder = write_adapter(tmp_path / "bad", tiny, tensors(tiny, seed=7), sealed=False)
    spoil(folder)
    engine = Engine.load(tiny, slots=1, device="cpu", work="native", max_adapters=1)
    pcm = sound(6, engine.frame_size, seed=7)
    wanted = converse(engine, 0, pcm)
    with pytest.raises(AdapterError, match=message):
        engine.load_adapter(folder)
    assert engine.adapters == {}
    assert_same(converse(engine, 0, pcm), wanted)
    engine.load_adapter(adapters[0])


CHANGES: dict[str, Callable[[Path], Any]] = {
    "a scaling": lambda folder: _configure(folder, lora_scaling=40.0),
    "a lower rank": lambda folder: _configure(folder, lora_rank=4),
    "what only the stock loader reads": lambda folder: _configure(folder, lora_name="other.safetensors"),
    "white space": lambda folder: (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_hash_of_the_weights_covers_the_config(tiny: Path, tmp_path: Path, what: str) -> None:
    folder = write_adapter(tmp_path / "changed", tiny, tensors(tiny, seed=7))
    sha256 = file_sha256(folder / ADAPTER_WEIGHTS)
    engine = Engine.load(tiny, slots=1, device="cpu", work="native", max_adapters=2)
    engine.load_adapter(folder, sha256=sha256)
    CHANGES[what](folder)
    assert file_sha256(folder / ADAPTER_WEIGHTS) == sha256
    with pytest.raises(AdapterError, match=r"config.json with SHA-256 .* changed since.*expected SHA-256 "):
        engine.load_adapter(folder, sha256=sha256)


def test_one_from_before_the_config_was_covered_is_taken_as_before(tiny: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "old", tiny, tensors(tiny, seed=7), sealed=False)
    _configure(folder, lora_scaling=1.5)
    engine = Engine.load(tiny, slots=1, device="cpu", work="native", max_adapters=1)
    engine.load_adapter(folder, sha256=file_sha256(folder / ADAPTER_WEIGHTS))


def test_one_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    engine = Engine.load(tiny, slots=1, device="cpu", work="native")
    folder = write_adapter(tmp_path / "other", tiny, tensors(tiny, seed=8), base_sha256="0" * 64)
    with pytest.raises(AdapterError, match=f"the model {'0' * 64}.*one of {engine.base_sha256}"):
        engine.load_adapter(folder)


def test_one_that_is_not_what_was_promised(tiny: Path, adapters: list[Path]) -> None:
    engine = Engine.load(tiny, slots=1, device="cpu", work="native")
    with pytest.raises(AdapterError, match="SHA-256 abc"):
        engine.load_adapter(adapters[0], sha256="abc")


def test_where_there_is_no_room_for_any(tiny: Path, adapters: list[Path]) -> None:
    for engine in (
        Engine.load(tiny, slots=1, device="cpu", work="upstream"),
        Engine.load(tiny, slots=1, device="cpu", work="native", max_adapters=0),
    ):
        with pytest.raises(AdapterError, match="keeps no adapters"):
            engine.load_adapter(adapters[0])
        with pytest.raises(AdapterError, match="none is loaded"):
            engine.open(0, adapter=1)
