"""The codec on kernels: against upstream's own, round its rings and back, and what a graph may hold of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from moshi.modules.streaming import StreamingModule
from moshi.utils.compile import no_compile
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.cpu import UnsupportedModelError
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.cuda import KernelStep
from server.engine.cuda_codec import CodecTransformer, KernelCodec
from server.engine.cuda_rings import Rings, ring_bytes
from server.engine.full_width import StreamingCodec
from server.engine.params import SamplingParams
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.timeout(300)  # the interpreter shares its core with whatever else runs

ROWS = 3
ROUND = 8
"""Frames that fill the tiny codec's ring: 16 positions, two a frame."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), lm_overrides={"context": 4})


@pytest.fixture(autouse=True)
def _as_the_engine_runs() -> Iterator[None]:
    with torch.inference_mode(), no_compile():
        yield


def loaded(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device=torch.device("cpu"), dtype=torch.float32)


def test_token_for_token_round_the_ring_with_pauses_and_a_new_call(folder: Path) -> None:
    """Rows hear and speak when they like, one is used again; tokens are equal and so is the sound, but for rounding."""
    checkpoint, generator = loaded(folder), torch.Generator().manual_seed(4)
    ours, theirs = KernelCodec(checkpoint.mimi, ROWS), StreamingCodec(loaded(folder).mimi, ROWS)
    heard = set()
    for frame in range(2 * ROUND + 3):
        if frame == ROUND + 2:
            for codec in (ours, theirs):
                codec.reset(torch.tensor([False, True, False]))
        pcm = 0.3 * torch.randn(ROWS, ours.frame_size, generator=generator)
        audio = torch.randint(0, 32, (ROWS, 4), generator=generator)
        hears, speaks = (torch.rand(ROWS, generator=generator) < 0.8 for _ in range(2))
        hears[0] = speaks[0] = True
        got, want = ours.encode(pcm, hears), theirs.encode(pcm, hears)
        assert torch.equal(got[hears], want[hears])
        heard |= set(map(tuple, got[hears].tolist()))
        said = ours.decode(audio, speaks)
        assert torch.allclose(said, theirs.decode(audio, speaks), atol=1e-5)
        assert not said[~speaks].any()
    assert len(heard) > ROUND, "the codec must hear something for this to prove"


def test_a_transformers_rows_that_do_not_move_are_neither_read_nor_written(folder: Path) -> None:
    """Its rings begin as NaN, and those of rows that stand still stay so."""
    module: Any = loaded(folder).mimi.encoder_transformer
    moving = torch.tensor([False, True, False])
    transformer = CodecTransformer(module, moving, times=2)
    rings = [part for ring in transformer.rings._rings for part in ring if part is not None]
    for part in rings:
        part.fill_(torch.nan)
    x = torch.randn(ROWS, 32, 2, generator=torch.Generator().manual_seed(5))
    x[~moving] = torch.nan
    for frame in range(3):
        assert transformer.step(x)[1].isfinite().all()
        for part in rings:
            assert part[~moving].isnan().all()
            assert part[1, :, : 2 * frame + 2].isfinite().all()
            assert part[1, :, 2 * frame + 2 :].isnan().all()
    assert transformer.rings.offset_B.tolist() == [0, 6, 0]


class NothingOnTheHost(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own __init_subclass__
    """Fails for what a CUDA graph cannot hold: a number that the host must know, or a shape that depends on one."""

    REFUSED = frozenset(
        f"aten::{name}"
        for name in ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal")
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func.name().partition(".")[0] not in self.REFUSED, f"{func.name()} waits for the device"
        return func(*args, **(kwargs or {}))


def addresses(*owners: object) -> dict[str, int]:
    """Where every tensor that these objects keep lies."""
    found: dict[str, int] = {}
    for place, owner in enumerate(owners):
        for name, value in vars(owner).items():
            for index, part in enumerate(value if isinstance(value, (list, tuple)) else [value]):
                if isinstance(part, Tensor):
                    found[f"{place}.{name}.{index}"] = part.data_ptr()
    return found


@pytest.fixture(scope="module")
def step(folder: Path) -> KernelStep:
    made = KernelStep(loaded(folder), 2, torch.device("cpu"))
    for row in range(2):
        made.open(row, SamplingParams(), 0, seed=row)
    return made


def states(module: Any) -> list[object]:
    return [each._streaming_state for each in module.modules() if isinstance(each, StreamingModule)]


@pytest.mark.parametrize("which", ["think", "hear", "speak"])
def test_what_a_graph_holds_keeps_its_memory_and_asks_the_host_nothing(step: KernelStep, which: str) -> None:
    """By what is dispatched: nothing waits for the device, and no state is exchanged for another tensor."""
    codec, language = step.codec, step.language
    half = {"hear": codec._mimi.encoder, "speak": codec._mimi.decoder}.get(which)
    work: Callable[[], None] = {"think": language.step, "hear": codec._hear_once, "speak": codec._speak_once}[which]
    everyone = torch.ones(2, dtype=torch.bool)
    for mask in (language.moving_B, codec._hears_B, codec._speaks_B):
        mask.copy_(everyone)
    owners = [step.sampling, language, language._rings, codec, *(each.rings for each in codec.transformers)]
    owners += [] if half is None else states(half)
    before = addresses(*owners)
    assert len(before) > 20
    with NothingOnTheHost():
        work()
        work()
    assert addresses(*owners) == before


def test_the_check_sees_what_a_graph_cannot_hold(step: KernelStep) -> None:
    """Upstream's change of frame rate exchanges its state, which is why it is not in the graph; `.item()` waits."""
    conv: Any = step.codec._mimi.downsample.conv
    before = addresses(conv._streaming_state)
    conv(torch.randn(2, 32, 2))
    assert addresses(conv._streaming_state) != before
    for asks in (torch.Tensor.item, torch.nonzero, bool):
        with pytest.raises(AssertionError, match="waits for the device"), NothingOnTheHost():
            asks(torch.ones(1))


def test_other_codecs_are_refused(folder: Path) -> None:
    mimi: Any = loaded(folder).mimi
    moving = torch.zeros(1, dtype=torch.bool)
    with pytest.raises(UnsupportedModelError, match="no power of two"):
        CodecTransformer(mimi.encoder_transformer, moving, times=3)
    mimi.encoder_transformer.transformer.layers[0].gating = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match="gates"):
        CodecTransformer(mimi.encoder_transformer, moving, times=2)
    mimi.encoder_transformer = None
    with pytest.raises(UnsupportedModelError, match="plain codec"):
        KernelCodec(mimi, 1)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.int8])
def test_a_rows_rings_take_what_is_said(folder: Path, kept: torch.dtype) -> None:
    transformer = loaded(folder).lm.transformer
    rings = Rings(transformer, torch.zeros(3, dtype=torch.bool), times=1, dtype=torch.float32, kept=kept)
    taken = sum(part.nbytes for ring in rings._rings for part in ring if part is not None)
    assert taken == 3 * ring_bytes(transformer, kept)
