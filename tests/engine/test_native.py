"""What only the compiled step promises: bits, not digits; nothing outside its own memory; the same dice."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.cpu import FrameMachine, RowMemory
from server.engine import Engine, SamplingParams
from server.engine.checkpoint import load_checkpoint
from server.engine.engine import CacheDtype
from server.engine.native import NativeStep
from server.errors import EngineError
from tests.engine.calls import GREEDY, batch, converse, mask
from tests.engine.stock import Call, sound
from tests.tiny_checkpoint import write_tiny_checkpoint

PARAMS = (
    SamplingParams(),
    SamplingParams(text_temperature=1.5, text_topk=0, audio_temperature=1.5, audio_topk=0),
    SamplingParams(text_topk=3, audio_topk=2, repetition_penalty=1.7, repetition_penalty_context=4),
    SamplingParams(text_temperature=0, audio_temperature=1.2, audio_topk=7, pad_mult=-2.0),
    SamplingParams(text_temperature=1.2, audio_temperature=0, repetition_penalty=2.0, pad_mult=1.0),
    SamplingParams(use_sampling=False, repetition_penalty=1.5),
)


def same_bits(got: Call, wanted: Call) -> None:
    assert got.tokens.tolist() == wanted.tokens.tolist()
    assert torch.equal(got.pcm, wanted.pcm)
    np.testing.assert_array_equal(got.logprob.numpy(), wanted.logprob.numpy())


@pytest.mark.parametrize("checkpoint", ["tiny", "mini"])
def test_the_same_bits_at_every_width_in_every_slot_with_any_threads(
    checkpoint: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(checkpoint)
    alone = Engine.load(folder, slots=1, device="cpu", work="native")
    pcm = sound(12, alone.frame_size, seed=1)
    params = SamplingParams(text_temperature=1.2, audio_temperature=1.2)
    wanted = converse(alone, 0, pcm, params, seed=7)
    for slots, threads, slot in ((3, 1, 2), (9, 1, 4), (17, 3, 11)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            engine = Engine.load(folder, slots=slots, device="cpu", work="native")
        finally:
            torch.set_num_threads(before)
        same_bits(converse(engine, slot, pcm, params, seed=7, noise_seed=slots), wanted)


@pytest.mark.parametrize("params", PARAMS)
def test_the_dice_fall_as_in_the_reference(tiny: Path, params: SamplingParams) -> None:
    """Temperatures, top-k, penalties, padding bonus and noise, token for token for forty frames."""
    calls = []
    for work in ("native", "upstream"):
        engine = Engine.load(tiny, slots=1, device="cpu", work=work)
        calls.append(converse(engine, 0, sound(40, engine.frame_size, seed=2), params, seed=2**40 + 5))
    assert calls[0].tokens.tolist() == calls[1].tokens.tolist()
    torch.testing.assert_close(calls[0].logprob, calls[1].logprob, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_nothing_is_written_or_read_outside_its_place(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poisoned gaps between all places and poisoned rows on both sides leave no trace, and stay as they are."""
    plain = Engine.load(tiny, slots=1, device="cpu", work="native")
    pcm = sound(40, plain.frame_size, seed=3)
    wanted = converse(plain, 0, pcm)
    gaps: list[int] = []
    scratch = RowMemory.scratch

    def with_gap(self: RowMemory, floats: int) -> int:
        self.floats += 16
        gaps.append(self.floats - 16)
        offset = scratch(self, floats)
        gaps.extend(range(offset + floats, self.floats))
        return offset

    monkeypatch.setattr(RowMemory, "scratch", with_gap)
    monkeypatch.setattr(FrameMachine, "release", lambda self, row: None)  # so that there is something to look at
    engine = Engine.load(tiny, slots=3, device="cpu", work="native")
    assert isinstance(engine._work, NativeStep)
    memory = engine._work.machine.memory
    memory[:] = np.nan
    same_bits(converse(engine, 1, pcm), wanted)
    assert np.isnan(memory[[0, 2]]).all()
    assert np.isnan(memory[1, gaps]).all()


def test_an_old_call_says_what_it_would_have_said(tiny: Path) -> None:
    """`measure_step` ages rows; a conversation opened afterwards knows nothing of it."""
    engine = Engine.load(tiny, slots=2, device="cpu", work="native")
    pcm = sound(10, engine.frame_size, seed=4)
    wanted = converse(engine, 1, pcm)
    assert engine.measure_step(2) > 0
    same_bits(converse(engine, 1, pcm), wanted)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's own count of pages")
def test_a_closed_row_gives_its_memory_back(mini: Path) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    engine = Engine.load(mini, slots=8, device="cpu", work="native")
    assert isinstance(engine._work, NativeStep)
    engine.warm_up()
    before, row = resident_bytes(), engine._work.row_bytes
    for slot in range(8):
        engine.open(slot, seed=slot)
        engine._work.age(slot, engine.context_frames)
    assert resident_bytes() - before > 7 * row
    for slot in range(8):
        engine.close(slot)
    assert resident_bytes() - before < row


@pytest.mark.parametrize("writeable", [True, False])
def test_arrays_are_read_and_left_as_they_are(tiny: Path, *, writeable: bool) -> None:
    engine = Engine.load(tiny, slots=2, device="cpu", work="native")
    pcm = sound(6, engine.frame_size, seed=6)
    wanted = converse(engine, 1, pcm).tokens.tolist()
    engine.open(1, GREEDY, seed=0)
    for chunk, expected in zip(pcm, wanted, strict=True):
        frame, moving = batch(engine, {1: chunk}).numpy().copy(), mask(engine, 1).numpy().copy()
        frame.flags.writeable = moving.flags.writeable = writeable
        before = frame.copy()
        out = engine.step(frame, moving)
        np.testing.assert_array_equal(frame, before)
        assert out.tokens[1].tolist() == expected


def test_a_row_that_stands_still_costs_no_bits(tiny: Path) -> None:
    engine = Engine.load(tiny, slots=2, device="cpu", work="native")
    assert isinstance(engine._work, NativeStep)
    engine.open(0, seed=1)
    chunk = sound(1, engine.frame_size, seed=5)[0]
    engine.step(batch(engine, {0: chunk}), mask(engine, 0))
    before = engine._work.machine.memory[0].copy()
    out = engine.step(batch(engine, {0: chunk}), mask(engine))
    np.testing.assert_array_equal(engine._work.machine.memory[0], before)
    assert (out.tokens == -2).all()


def test_a_model_that_cannot_be_expressed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_tiny_checkpoint(tmp_path, lm_overrides={"depformer_pos_emb": "sin"})
    with pytest.raises(EngineError, match="'sin' positions in the depth"):
        Engine.load(folder, slots=1, device="cpu", work="native")
    with pytest.raises(EngineError, match=r"'sin' positions in the depth.*leave out work and cache_dtype"):
        Engine.load(folder, slots=1, device="cpu", cache_dtype="bf16")
    engine = Engine.load(folder, slots=1, device="cpu")
    assert engine.work == "upstream"
    assert "'sin' positions in the depth" in caplog.text


def test_an_unknown_kind_of_work(tiny: Path) -> None:
    with pytest.raises(EngineError, match="'magic'"):
        Engine.load(tiny, slots=1, device="cpu", work="magic")  # type: ignore[arg-type]


@pytest.mark.parametrize("checkpoint", ["tiny", "mini"])
def test_short_rings_say_nearly_the_same_and_always_the_same(checkpoint: str, request: pytest.FixtureRequest) -> None:
    """In bfloat16: as long as the past is the same, log-probabilities are close, and that they differ at all shows that
    the rings are short; bits do not depend on the company; a row takes less memory."""
    folder = request.getfixturevalue(checkpoint)
    kinds: tuple[CacheDtype, ...] = ("fp32", "bf16")
    engines = [Engine.load(folder, slots=3, device="cpu", work="native", cache_dtype=kind) for kind in kinds]
    assert [(engine.work, engine.cache_dtype) for engine in engines] == [("native", "fp32"), ("native", "bf16")]
    pcm = sound(40, engines[0].frame_size, seed=1)
    params = SamplingParams(text_temperature=1.2, audio_temperature=1.2)
    long, short = (converse(engine, 0, pcm, params, seed=7) for engine in engines)
    same_bits(converse(engines[1], 2, pcm, params, seed=7, noise_seed=3), short)
    equal = int((long.tokens == short.tokens).all(dim=1).int().cumprod(0).sum())
    assert equal >= 5, "the first difference comes late"
    torch.testing.assert_close(long.logprob[:equal], short.logprob[:equal], atol=0.05, rtol=0.05, equal_nan=True)
    assert not torch.equal(long.logprob[:equal].nan_to_num(), short.logprob[:equal].nan_to_num())
    model = load_checkpoint(folder, device=torch.device("cpu"), dtype=torch.float32)
    sizes = [NativeStep(model, 1, bf16_rings=bf16).row_bytes for bf16 in (False, True)]
    assert sizes[1] < sizes[0]
