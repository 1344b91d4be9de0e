"""How many slots a GPU holds: refused before anything is made, taken as they fit where the width is open."""

from pathlib import Path
from typing import Any

import pytest
import torch
from moshi.models import loaders

from kernels.roofline import CARDS, MOSHI_7B, fits
from server.capacity import Limits, load_wide
from server.engine import Engine, cuda_memory
from server.engine.checkpoint import Checkpoint
from server.engine.cuda_memory import check_room, fitting, row_bytes
from server.engine.params import SamplingParams
from server.errors import SlotRoomError
from tests.tiny_checkpoint import write_tiny_checkpoint

GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def moshi_7b() -> Checkpoint:
    """Moshi's real sizes, without a number in memory."""
    with torch.device("meta"):
        lm = loaders.get_moshi_lm(None, None, device="meta", dtype=torch.bfloat16)
        mimi = loaders.get_mimi(None, None, device="meta")
    return Checkpoint(name="7b", lm_path=Path("7b"), lm=lm, mimi=mimi, text_tokenizer=None, sampling=SamplingParams())


@pytest.mark.parametrize(("kept", "gigabytes"), [(torch.bfloat16, 1.573), (torch.int8, 0.811)])
def test_a_slot_of_moshi_7b(moshi_7b: Checkpoint, kept: torch.dtype, gigabytes: float) -> None:
    """The language model's rings, and 16 MB of the codec's."""
    assert row_bytes(moshi_7b, kept) / 1e9 == pytest.approx(gigabytes + MOSHI_7B.codec_row_bytes / 1e9, abs=1e-3)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.int8])
def test_it_is_about_what_the_roofline_says(moshi_7b: Checkpoint, kept: torch.dtype) -> None:
    """Less by the row that the check needs, more or less by what stays free."""
    for card in CARDS:
        weights = 2 * sum(each.numel() for each in moshi_7b.lm.parameters()) + MOSHI_7B.codec_weight_bytes
        free = int(card.memory - weights)
        found = fitting(moshi_7b, free, int(card.memory), kept=kept, max_adapters=0, rank=128)
        assert abs(found - fits(MOSHI_7B, card, int8=kept == torch.int8)) <= 4
        assert fitting(moshi_7b, free, int(card.memory), kept=kept, max_adapters=4, rank=128) < found


def test_more_than_fits_is_refused_with_what_does(moshi_7b: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Any = {"kept": torch.bfloat16, "max_adapters": 4, "rank": 128}
    monkeypatch.setattr(cuda_memory, "_free_and_total", lambda _device: (64 * 10**9, 80 * 10**9))
    with pytest.raises(SlotRoomError, match=r"64 slots of 1.6 GB on cuda, of which 64 GB are free") as refused:
        check_room(moshi_7b, 64, GPU, **asked)
    assert 20 < refused.value.fits < 40
    check_room(moshi_7b, refused.value.fits, GPU, **asked)
    check_room(moshi_7b, 10_000, torch.device("cpu"), **asked)
    monkeypatch.setattr(cuda_memory, "_free_and_total", lambda _device: (10**9, 80 * 10**9))
    with pytest.raises(SlotRoomError, match="at most 0"):
        check_room(moshi_7b, 1, GPU, **asked)


def test_an_open_width_is_what_fits(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    asked = []

    def load(slots: int) -> Engine:
        asked.append(slots)
        if slots > 3:
            raise SlotRoomError(got=f"{slots}", expected="at most 3", remedy="fewer", fits=3)
        return Engine.load(folder, slots=slots, device="cpu")

    engine, _ = load_wide(load, Limits(slots=None, ceiling=32), frame_s=10.0)
    assert (engine.slots, asked) == (3, [32, 3])
    with pytest.raises(SlotRoomError):
        load_wide(load, Limits(slots=8, ceiling=32), frame_s=10.0)
