"""The kernels' check at the start, both ways: sound kernels are taken, wrong ones are found and upstream serves."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import dialect
from server.engine import Engine, cuda, cuda_codec, cuda_language, cuda_rings, work
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.cuda import KernelStep
from server.engine.cuda_check import disagreement
from server.engine.cuda_sampling import KernelSampling
from server.engine.upstream import UpstreamStep
from server.engine.work import CacheDtype, Chosen, Work
from server.errors import EngineError
from tests.engine.calls import converse
from tests.engine.stock import sound
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.timeout(300)  # the interpreter shares its core with whatever else runs

CPU = torch.device("cpu")
GREEDY_ROWS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), lm_overrides={"context": 5})


def loaded(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device=CPU, dtype=torch.float32)


def as_on_a_gpu(checkpoint: Checkpoint, *, cache_dtype: CacheDtype = "auto", required: bool = False) -> Chosen:
    """What `choose` does on a GPU, with the interpreter for one."""
    return work._on_kernels(work._Wishes(checkpoint, GREEDY_ROWS, CPU, cache_dtype, 1), required=required)


def test_sound_kernels_are_taken(folder: Path) -> None:
    chosen = as_on_a_gpu(loaded(folder))
    assert (chosen.work, chosen.cache_dtype, chosen.fallback) == ("kernels", "fp32", "")
    assert isinstance(chosen.step, KernelStep)
    assert chosen.step.language.offset_B.tolist() == [0, 0]
    assert not chosen.step.language.moving_B.any()


def swapped_halves(qkv: Tensor, cosine: Tensor, sine: Tensor, *rest: Any) -> None:
    """Attention that turns its keys and queries the wrong way: a mistake in one sign."""
    torch.ops.duologue.ring_decode(qkv, cosine, -sine.roll(1, -1), *rest)


def plain_gate(x: Tensor) -> Tensor:
    """A gate without its sigmoid."""
    gate, value = x.chunk(2, dim=-1)
    return gate * value


def finds_nothing(partial: Tensor, weight: Tensor, moving: Tensor, out: Tensor) -> None:
    """Attention that says nothing."""
    out.zero_()


@pytest.mark.parametrize(
    ("module", "name", "wrong", "said"),
    [
        (cuda_rings, "ring_decode", swapped_halves, "disagree with upstream"),
        (cuda_rings, "combine", finds_nothing, "disagree with upstream"),
        (cuda_language, "swiglu", plain_gate, "language model's kernels disagree"),
    ],
)
def test_a_wrong_kernel_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Callable[..., object], said: str
) -> None:
    monkeypatch.setattr(module, name, wrong)
    checkpoint = loaded(folder)
    assert said in disagreement(KernelStep(checkpoint, GREEDY_ROWS, CPU), checkpoint)


def test_a_codec_that_is_wrong_alone_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second position is lost."""

    def first_only(qkv: Tensor, *rest: Any) -> None:
        times = qkv.shape[1]
        torch.ops.duologue.ring_decode(qkv if times == 1 else qkv[:, :1].expand_as(qkv).clone(), *rest)

    monkeypatch.setattr(cuda_rings, "ring_decode", first_only)
    checkpoint = loaded(folder)
    assert "codec's kernels disagree with upstream (hearing" in disagreement(KernelStep(checkpoint, 1, CPU), checkpoint)


def test_a_codec_that_was_recorded_wrongly_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that begins every frame anew, as one does whose state is exchanged and not written."""

    def forgetful(once: Callable[[], None], _device: torch.device) -> Callable[[], object]:
        def replay() -> None:
            codec.reset(torch.ones(1, dtype=torch.bool))
            codec._hears_B.fill_(True)
            once()

        return replay

    monkeypatch.setattr(cuda_codec, "recorded", forgetful)
    checkpoint = loaded(folder)
    step = KernelStep(checkpoint, 1, CPU)
    codec = step.codec
    assert "recording is not what was recorded (hearing" in disagreement(step, checkpoint)


def test_a_row_that_is_written_while_it_stands_still_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remember(sampling: KernelSampling, moving: Tensor) -> None:
        sampling.token_BK[~moving] += 1

    monkeypatch.setattr(KernelSampling, "remember", remember)
    checkpoint = loaded(folder)
    assert "stands still was written" in disagreement(KernelStep(checkpoint, 3, CPU), checkpoint)


@pytest.mark.parametrize("fault", ["wrong", "raises", "no triton"])
def test_upstream_serves_where_kernels_fail_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Loudly, and for good: the model that the kernels had is upstream's again, and says what it always says."""
    if fault == "wrong":
        monkeypatch.setattr(cuda_rings, "combine", finds_nothing)
    elif fault == "raises":
        monkeypatch.setattr(cuda, "recorded", lambda *_: 1 / 0)
    else:
        monkeypatch.setattr(dialect, "PRESENT", False)
    with caplog.at_level(logging.ERROR):
        chosen = as_on_a_gpu(loaded(folder))
    assert (chosen.work, chosen.cache_dtype) == ("upstream", "fp32")
    assert {"wrong": "disagree", "raises": "ZeroDivisionError", "no triton": "Triton"}[fault] in chosen.fallback
    assert "THE KERNELS ARE NOT USED" in caplog.text
    assert chosen.fallback in caplog.text

    def choose_it(*_: object, **__: object) -> Chosen:
        return chosen

    monkeypatch.setattr("server.engine.engine.choose", choose_it)
    engine = Engine.load(folder, slots=GREEDY_ROWS, device="cpu")
    assert (engine.work, engine.fallback) == ("upstream", chosen.fallback)
    assert isinstance(chosen.step, UpstreamStep)
    monkeypatch.undo()
    pcm = sound(4, engine.frame_size, seed=3)
    stock = Engine.load(folder, slots=GREEDY_ROWS, device="cpu", work="upstream")
    assert torch.equal(converse(engine, 0, pcm).tokens, converse(stock, 0, pcm).tokens)


def test_what_only_kernels_can_do_is_refused_when_they_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_rings, "combine", finds_nothing)
    with pytest.raises(EngineError, match="cache_dtype='int8', which only kernels can keep"):
        as_on_a_gpu(loaded(folder), cache_dtype="int8")
    with pytest.raises(EngineError, match='work="kernels", and no kernels'):
        as_on_a_gpu(loaded(folder), required=True)


@pytest.mark.parametrize(("how", "who"), [("auto", "a CPU's step"), ("upstream", "the moshi package's modules")])
def test_rings_of_another_type_are_refused_where_there_are_none(folder: Path, how: Work, who: str) -> None:
    with pytest.raises(EngineError, match=f"cache_dtype = 'int8' on cpu with {who}"):
        Engine.load(folder, slots=1, device="cpu", work=how, cache_dtype="int8")
    engine = Engine.load(folder, slots=1, device="cpu", work=how, cache_dtype="fp32")
    assert (engine.cache_dtype, engine.fallback) == ("fp32", "")
    with pytest.raises(EngineError, match="cache_dtype = 'bf16' on cpu with the moshi package's modules"):
        Engine.load(folder, slots=1, device="cpu", work="upstream", cache_dtype="bf16")
    with pytest.raises(EngineError, match="expected one of auto, bf16"):
        Engine.load(folder, slots=1, device="cpu", work=how, cache_dtype="int4")  # type: ignore[arg-type]
