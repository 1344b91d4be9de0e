"""What the engine refuses, what it says then, and that a refusal changes nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from server.engine import Engine, SamplingParams
from server.errors import AdapterError, DuologueError, EngineError, FrameError, SlotError
from tests.engine.calls import batch, converse, mask
from tests.engine.stock import sound


@pytest.mark.parametrize("slot", [-1, 3, 1.0, "0", None, True])
def test_slot_that_does_not_exist(engine: Engine, slot: Any) -> None:
    for action in (engine.open, engine.close):
        with pytest.raises(SlotError, match="expected 0 to 2") as refusal:
            action(slot)
        assert refusal.value.slot is slot


def test_open_and_close_out_of_turn(engine: Engine) -> None:
    engine.open(1)
    with pytest.raises(SlotError, match="slot 1, which is open; expected one that is closed; close it first"):
        engine.open(1)
    engine.close(1)
    with pytest.raises(SlotError, match="slot 1, which is closed; expected one that is open; open it first"):
        engine.close(1)
    assert engine.open_slots == ()


def test_active_slot_that_is_closed(engine: Engine) -> None:
    engine.open(0)
    with pytest.raises(SlotError, match="slot 2, which is closed"):
        engine.step(batch(engine, {}), mask(engine, 0, 2))


@pytest.mark.parametrize("adapter", [0, 3, "a1"])
def test_adapter_that_is_not_there(engine: Engine, adapter: Any) -> None:
    with pytest.raises(AdapterError, match="expected None") as refusal:
        engine.open(0, adapter=adapter)
    assert refusal.value.adapter == adapter
    assert engine.open_slots == ()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "7", False])
def test_bad_seed(engine: Engine, seed: Any) -> None:
    with pytest.raises(EngineError, match="seed"):
        engine.open(0, seed=seed)
    assert engine.open_slots == ()


def test_largest_seed(engine: Engine) -> None:
    assert engine.open(0, seed=2**63 - 1) == 2**63 - 1


BAD_SOUND: dict[str, Callable[[torch.Tensor], Any]] = {
    "one row short": lambda pcm: pcm[:2],
    "one sample short": lambda pcm: pcm[:, 1:],
    "a channel axis": lambda pcm: pcm[:, None],
    "double": lambda pcm: pcm.double(),
    "half": lambda pcm: pcm.half(),
    "integers": lambda pcm: pcm.short(),
    "a double array": lambda pcm: pcm.double().numpy(),
    "a list": lambda pcm: pcm.tolist(),
    "nothing": lambda pcm: None,
}


@pytest.mark.parametrize("spoil", BAD_SOUND.values(), ids=BAD_SOUND)
def test_bad_sound(engine: Engine, spoil: Callable[[torch.Tensor], Any]) -> None:
    engine.open(0)
    with pytest.raises(FrameError, match=r"expected torch.float32 \[3, 1280\]") as refusal:
        engine.step(spoil(batch(engine, {})), mask(engine, 0))
    assert refusal.value.argument == "pcm"


@pytest.mark.parametrize(
    "active", [torch.ones(3), torch.ones(2, dtype=torch.bool), np.ones((3, 1), dtype=bool), [True] * 3, None]
)
def test_bad_mask(engine: Engine, active: Any) -> None:
    engine.open(0)
    with pytest.raises(FrameError, match=r"expected torch.bool \[3\]") as refusal:
        engine.step(batch(engine, {}), active)
    assert refusal.value.argument == "active"


def test_refusals_move_nothing(engine: Engine) -> None:
    pcm = sound(8, engine.frame_size, seed=40)
    params = SamplingParams(text_temperature=1.0)
    wanted = converse(engine, 0, pcm, params, seed=1)
    engine.open(0, params, seed=1)
    got = []
    for chunk in pcm:
        with pytest.raises(SlotError):
            engine.step(batch(engine, {0: chunk}), mask(engine, 0, 1))
        with pytest.raises(FrameError):
            engine.step(batch(engine, {0: chunk}).double(), mask(engine, 0))
        with pytest.raises(SlotError):
            engine.open(0)
        with pytest.raises(SlotError):
            engine.warm_up()
        assert engine.open_slots == (0,)
        got.append(engine.step(batch(engine, {0: chunk}), mask(engine, 0)).tokens[0].tolist())
    assert got == wanted.tokens.tolist()


@pytest.mark.parametrize("slots", [0, -1, 1.5, "8", True, 10**6])
def test_bad_width(slots: Any) -> None:
    with pytest.raises(EngineError, match="slots"):
        Engine.load("mini", slots=slots, device="cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "meta?"])
def test_bad_device(device: str) -> None:
    with pytest.raises(EngineError, match="device"):
        Engine.load("mini", slots=1, device=device)


def test_one_tree() -> None:
    error = SlotError(4, got="this", expected="that", remedy="do it")
    assert isinstance(error, EngineError)
    assert isinstance(error, DuologueError)
    assert str(error) == "got this; expected that; do it"
    assert (error.got, error.expected, error.remedy, error.slot) == ("this", "that", "do it", 4)
