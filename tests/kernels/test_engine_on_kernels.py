"""The whole GPU path on a CPU: a tiny model's frames through every kernel, token for token as on the reference path."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels import dialect
from kernels.cpu import LowRank, UnsupportedModelError
from server.engine import Engine
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.cuda import KernelStep
from server.engine.cuda_sampling import KernelSampling
from server.engine.frames import FrameStep, Stepped
from server.engine.native import NativeStep
from server.engine.params import SamplingParams
from server.engine.sampling import RowSampling
from server.engine.upstream import UpstreamStep
from server.errors import EngineError
from tests.engine.lora import tensors, write_adapter
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.timeout(300)  # the interpreter shares its core with whatever else runs

CPU = torch.device("cpu")
CONTEXT = 5
ROWS = 2
GREEDY = SamplingParams(use_sampling=False)
LOUD = SamplingParams(text_temperature=1.5, audio_topk=9, pad_mult=0.5, repetition_penalty=1.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), lm_overrides={"context": CONTEXT})


def loaded(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device=CPU, dtype=torch.float32)


def frames(checkpoint: Checkpoint, count: int) -> Tensor:
    size = checkpoint.mimi.frame_size
    return 0.2 * torch.randn(count, ROWS, size, generator=torch.Generator().manual_seed(1))


def converse(step: FrameStep, pcm: Tensor, plan: list[tuple[bool, bool]]) -> list[Stepped]:
    step.open(0, GREEDY, 0, seed=11)
    step.open(1, LOUD, 0, seed=2**61 + 7)
    return [step.step(pcm[frame], torch.tensor(moving)) for frame, moving in enumerate(plan)]


def test_token_for_token_past_the_ring_and_with_pauses(folder: Path) -> None:
    """One row greedy, one with everything that sampling has; the ring of 5 is passed; rows pause."""
    plan = [(True, True)] * 2 + [(True, False)] * 2 + [(True, True)] * 3 + [(False, True)]
    pcm = frames(loaded(folder), len(plan))
    ours = converse(KernelStep(loaded(folder), ROWS, CPU), pcm, plan)
    theirs = converse(UpstreamStep(loaded(folder), ROWS, CPU), pcm, plan)
    spoken = set()
    for got, want in zip(ours, theirs, strict=True):
        assert torch.equal(got.tokens_BK, want.tokens_BK)
        assert torch.allclose(got.logprob_B, want.logprob_B, atol=1e-4, equal_nan=True)
        assert torch.allclose(got.pcm_BS, want.pcm_BS, atol=1e-4)
        spoken |= set(map(tuple, got.tokens_BK.tolist()))
    assert len(spoken) > len(plan) // 2, "the model must say something for this to prove"


def test_a_slot_used_again_remembers_nothing(folder: Path) -> None:
    """Its ring still holds the last conversation, and nobody reads it."""
    step = KernelStep(loaded(folder), ROWS, CPU)
    pcm = frames(loaded(folder), 4)
    plan = [(False, True)] * 4
    first = converse(step, pcm, plan)
    again = converse(step, pcm, plan)
    for got, want in zip(again, first, strict=True):
        assert torch.equal(got.tokens_BK, want.tokens_BK)


def test_every_rows_own_adapter(folder: Path) -> None:
    """Against the compiled step; the adapter's row says something else than without, the other row does not."""
    plan = [(True, True)] * 4
    pcm = frames(loaded(folder), len(plan))
    checkpoint = loaded(folder)
    generator = torch.Generator().manual_seed(3)
    parts = {
        name: LowRank(
            torch.randn(3, module.in_features, generator=generator) / module.in_features**0.5,
            torch.randn(module.out_features, 3, generator=generator) * (0.3 if "transformer" in name else 0.0),
        )
        for name, module in checkpoint.lm.named_modules()
        if isinstance(module, nn.Linear)
    }

    def said(step: Any, adapter: int) -> list[Stepped]:
        step.adapters.write(2, parts, 2.0)
        step.open(0, GREEDY, 0, seed=11)
        step.open(1, GREEDY, adapter, seed=11)
        return [step.step(pcm[frame], torch.tensor(moving)) for frame, moving in enumerate(plan)]

    kernels = KernelStep(checkpoint, ROWS, CPU, max_adapters=2, max_rank=4)
    native = NativeStep(loaded(folder), ROWS, max_adapters=2)
    assert set(kernels.adapters.sites) == set(native.adapters.sites)
    ours, theirs = said(kernels, 2), said(native, 2)
    for got, want in zip(ours, theirs, strict=True):
        assert torch.equal(got.tokens_BK, want.tokens_BK)
    plain = said(native, 0)
    assert any(not torch.equal(got.tokens_BK[1], want.tokens_BK[1]) for got, want in zip(ours, plain, strict=True))
    assert all(torch.equal(got.tokens_BK[0], want.tokens_BK[0]) for got, want in zip(ours, plain, strict=True))


def test_an_int8_ring_stays_close_and_reads_nothing_unwritten(folder: Path) -> None:
    """It begins as poison: 77 in every slot, NaN in every scale. Log-probabilities move by less than a tenth.

    Each written slot has a scale of its own in each head, by which its largest number is 127.
    """
    plan = [(True, False)] * 4
    pcm = frames(loaded(folder), len(plan))
    step = KernelStep(loaded(folder), ROWS, CPU, kept=torch.int8)
    rings = step.language._rings._rings
    with torch.inference_mode():
        for k, v, *scales in rings:
            for kept in (k, v):
                kept.fill_(77)
            for scale in scales:
                assert scale is not None
                scale.fill_(torch.nan)
    ours = converse(step, pcm, plan)
    theirs = converse(UpstreamStep(loaded(folder), ROWS, CPU), pcm, plan)
    assert (ours[1].logprob_B[0] - theirs[1].logprob_B[0]).abs() < 0.1
    assert all(stepped.logprob_B[0].isfinite() for stepped in ours[1:])
    for k, v, *scales in rings:
        for kept, scale in zip((k, v), scales, strict=True):
            assert scale is not None
            assert scale[1].isnan().all(), "a row that stands still"
            assert scale[0, :, len(plan) :].isnan().all()
            assert (kept[0, :, len(plan) :] == 77).all()
            written = scale[0, :, : len(plan)].flatten().tolist()
            assert len(set(written)) == len(written)
            assert (kept[0, :, : len(plan)].abs().amax(-1) == 127).all()


@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
def test_a_ring_may_have_another_type_than_the_model(folder: Path, kept: torch.dtype) -> None:
    plan = [(True, True)] * 3
    pcm = frames(loaded(folder), len(plan))
    ours = converse(KernelStep(loaded(folder), ROWS, CPU, kept=kept), pcm, plan)
    theirs = converse(UpstreamStep(loaded(folder), ROWS, CPU), pcm, plan)
    allowed = 1e-4 if kept == torch.float32 else 1e-2
    assert torch.allclose(ours[1].logprob_B, theirs[1].logprob_B, atol=allowed)


def test_sampling_is_the_reference_paths() -> None:
    """Penalties over a long text, in rows that pause, against `RowSampling`."""
    card, dep_q = 12, 2
    how: dict[str, Any] = {
        "rows": 3, "text_card": card, "dep_q": dep_q, "card": card, "padding_ids": (3, 0), "device": CPU,
    }  # fmt: skip
    ours, theirs = KernelSampling(**how), RowSampling(**how)
    params = [LOUD, SamplingParams(repetition_penalty=2.0, repetition_penalty_context=2, use_sampling=False),
              SamplingParams(text_topk=0, repetition_penalty=0.5, repetition_penalty_context=256)]  # fmt: skip
    for row, chosen in enumerate(params):
        ours.set(row, chosen, seed=row)
        theirs.set(row, chosen, seed=row)
    generator = torch.Generator().manual_seed(5)
    frame = torch.zeros(3, dtype=torch.int64)
    for _ in range(12):
        moving = torch.rand(3, generator=generator) < 0.7
        logits, audio = (2 * torch.randn(3, card, generator=generator) for _ in range(2))
        theirs.begin_frame(frame)
        want, likely = theirs.pick_text(logits)
        want_audio = theirs.pick_audio(1, audio)
        theirs.remember(want, moving)
        got = ours.pick_text(logits, frame, moving)
        assert torch.equal(got[moving], want[moving])
        assert torch.allclose(ours.logprob_B[moving], likely[moving], atol=1e-5)
        assert torch.equal(ours.pick_audio(1, audio, frame, moving)[moving], want_audio[moving])
        ours.remember(moving)
        frame += moving


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = write_tiny_checkpoint(tmp_path / "scaled", lm_overrides={"layer_scale": 0.1})
    with pytest.raises(UnsupportedModelError, match="layer scales"):
        KernelStep(loaded(scaled), ROWS, CPU)
    monkeypatch.setattr(dialect, "PRESENT", False)
    with pytest.raises(UnsupportedModelError, match="without Triton"):
        KernelStep(loaded(folder), ROWS, CPU)


def test_the_engines_door_on_kernels(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name: an adapter from its file changes what a row says, as it does in the compiled step."""
    adapter = write_adapter(tmp_path / "adapter", folder, tensors(folder, seed=2, only="transformer."))
    said = {}
    for work in ("kernels", "native"):
        engine = Engine.load(folder, slots=ROWS, device="cpu", work=work, max_adapters=1)
        assert (engine.work, engine.adapter_places, engine.cache_dtype) == (work, 1, "fp32")
        pauses: list[int] = []
        number = engine.load_adapter(adapter, pause=partial(pauses.append, 1))
        assert len(pauses) > len(engine.adapter_layers)
        engine.open(0, GREEDY, seed=1)
        engine.open(1, GREEDY, adapter=number, seed=1)
        pcm = frames(loaded(folder), 3)[:, :1].expand(-1, ROWS, -1)
        said[work] = torch.stack(
            [engine.step(frame.clone(), torch.ones(ROWS, dtype=torch.bool)).tokens for frame in pcm]
        )
        engine.use_adapter(1, None)
        engine.drop_adapter(number)
    assert torch.equal(said["kernels"], said["native"])
    assert not torch.equal(said["kernels"][:, 0], said["kernels"][:, 1])
    monkeypatch.setattr(dialect, "PRESENT", False)
    with pytest.raises(EngineError, match="without Triton"):
        Engine.load(folder, slots=ROWS, device="cpu", work="kernels")
