"""The engine's promises, as tests that hold for any checkpoint.

A subclass names the fixture of its folder in `checkpoint`; `conftest` loads it once per class.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from server.engine import Engine, SamplingParams
from server.engine.engine import Work
from tests.engine.calls import GREEDY, assert_same, batch, converse, mask
from tests.engine.stock import NOTHING, Stock, sound

SLOTS = 3  # as in conftest
FRAMES = 9
SAMPLED = SamplingParams(text_temperature=2.0, text_topk=0, audio_temperature=2.0, audio_topk=0)
"""Hot enough that a well-trained model, too, says something else with another seed."""


class EnginePromises:
    checkpoint: str
    work: Work = "native"

    def test_greedy_equals_stock_server(self, folder: Path, stock: Stock) -> None:
        alone = Engine.load(folder, slots=1, device="cpu", work=self.work)
        pcm = sound(FRAMES, alone.frame_size, seed=1)
        got, wanted = converse(alone, 0, pcm), stock.converse(pcm)
        assert_same(got._replace(logprob=wanted.logprob), wanted)
        assert len(set(map(tuple, got.tokens.tolist()))) > FRAMES // 3, "the model must say something for this to prove"

    @pytest.mark.parametrize("slot", range(SLOTS))
    def test_greedy_equals_stock_server_beside_others(self, engine: Engine, stock: Stock, slot: int) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=2)
        got, wanted = converse(engine, slot, pcm, noise_seed=5), stock.converse(pcm)
        assert_same(got._replace(logprob=wanted.logprob), wanted)

    def test_first_output_comes_after_the_delay(self, engine: Engine) -> None:
        call = converse(engine, 0, sound(engine.delay_frames + 2, engine.frame_size, seed=3))
        silent = engine.delay_frames
        assert (call.tokens[:silent] == NOTHING).all()
        assert not call.pcm[:silent].any()
        assert call.logprob[:silent].isnan().all()
        assert (call.tokens[silent:] >= 0).all()
        assert call.pcm[silent:].any(dim=1).all()
        assert (call.logprob[silent:] <= 0).all()

    def test_first_frame_is_not_heard(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=4)
        other = pcm.clone()
        other[0] = sound(1, engine.frame_size, seed=99)[0]
        assert_same(converse(engine, 1, other), converse(engine, 1, pcm))
        other[1] = sound(1, engine.frame_size, seed=98)[0]
        assert converse(engine, 1, other).tokens.tolist() != converse(engine, 1, pcm).tokens.tolist()

    @pytest.mark.parametrize("params", [GREEDY, SAMPLED, SamplingParams(repetition_penalty=1.5, pad_mult=1.0)])
    def test_logprob_is_that_of_the_training_forward(
        self, engine: Engine, stock: Stock, params: SamplingParams
    ) -> None:
        call = converse(engine, 1, sound(FRAMES, engine.frame_size, seed=5), params, seed=3)
        columns = call.tokens[engine.delay_frames :]
        wanted = stock.text_logprob(columns)
        torch.testing.assert_close(call.logprob[engine.delay_frames :], wanted, atol=1e-3, rtol=1e-3)

    def test_seed_decides_everything(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=6)
        first = converse(engine, 0, pcm, SAMPLED, seed=11)
        assert_same(converse(engine, 0, pcm, SAMPLED, seed=11), first)
        assert converse(engine, 0, pcm, SAMPLED, seed=12).tokens.tolist() != first.tokens.tolist()
        assert converse(engine, 0, pcm, SAMPLED, seed=11 + 2**40).tokens.tolist() != first.tokens.tolist()

    def test_drawn_seed_replays(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=6)
        seeds, calls = [], []
        for _ in range(2):
            seeds.append(engine.open(0, SAMPLED))
            active = mask(engine, 0)
            calls.append([engine.step(batch(engine, {0: chunk}), active).tokens[0].tolist() for chunk in pcm])
            engine.close(0)
        assert seeds[0] != seeds[1]
        assert calls[0] != calls[1]
        assert converse(engine, 0, pcm, SAMPLED, seed=seeds[0]).tokens.tolist() == calls[0]

    def test_seed_means_the_same_in_every_slot_and_width(self, folder: Path, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=7)
        calls = [converse(engine, slot, pcm, SAMPLED, seed=5, noise_seed=slot) for slot in range(SLOTS)]
        calls.append(converse(Engine.load(folder, slots=1, device="cpu", work=self.work), 0, pcm, SAMPLED, seed=5))
        for call in calls[1:]:
            assert_same(call, calls[0])

    def test_rows_differ_in_parameters(self, engine: Engine) -> None:
        """Three callers at once, each with its own choice, say what each says alone."""
        choices = [
            GREEDY,
            SamplingParams(text_temperature=1.2, text_topk=5, audio_temperature=0, repetition_penalty=2.0),
            SamplingParams(text_temperature=0, audio_temperature=1.2, audio_topk=0, pad_mult=-2.0),
        ]
        pcm = [sound(FRAMES, engine.frame_size, seed=20 + slot) for slot in range(SLOTS)]
        alone = [converse(engine, slot, pcm[slot], choices[slot], seed=slot) for slot in range(SLOTS)]
        for slot in range(SLOTS):
            engine.open(slot, choices[slot], seed=slot)
        everyone = mask(engine, *range(SLOTS))
        outputs = [engine.step(torch.stack([pcm[s][t] for s in range(SLOTS)]), everyone) for t in range(FRAMES)]
        for slot in range(SLOTS):
            assert [out.tokens[slot].tolist() for out in outputs] == alone[slot].tokens.tolist()

    def test_paused_row_does_not_move(self, engine: Engine) -> None:
        """Pauses of every length, garbage in the paused row and a talking neighbour leave no trace."""
        pcm = sound(FRAMES, engine.frame_size, seed=8)
        wanted = converse(engine, 1, pcm, SAMPLED, seed=9)
        engine.open(1, SAMPLED, seed=9)
        engine.open(2, SAMPLED, seed=10)
        got = []
        for frame, chunk in enumerate(pcm):
            for pause in range(frame % 4):
                garbage = sound(1, engine.frame_size, seed=frame * 10 + pause)[0] * 5
                out = engine.step(batch(engine, {1: garbage, 2: garbage}), mask(engine, 2))
                assert (out.tokens[1] == NOTHING).all()
                assert out.text[1] == NOTHING
                assert not out.pcm[1].any()
                assert out.logprob[1].isnan()
            got.append(engine.step(batch(engine, {1: chunk}), mask(engine, 1)))
        assert [out.tokens[1].tolist() for out in got] == wanted.tokens.tolist()
        torch.testing.assert_close(torch.stack([out.pcm[1] for out in got]), wanted.pcm, atol=1e-5, rtol=1e-4)

    def test_reopened_slot_remembers_nothing(self, engine: Engine) -> None:
        params = SamplingParams(repetition_penalty=3.0, text_temperature=1.0)
        pcm = sound(FRAMES, engine.frame_size, seed=9)
        fresh = converse(engine, 2, pcm, params, seed=4)
        converse(engine, 2, sound(2 * FRAMES, engine.frame_size, seed=10), SAMPLED, seed=1)
        assert_same(converse(engine, 2, pcm, params, seed=4), fresh)

    def test_reopening_one_slot_leaves_the_others(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=11)
        wanted = converse(engine, 0, pcm)
        engine.open(0, GREEDY)
        got = []
        for chunk in pcm:
            engine.open(1, SAMPLED)
            got.append(engine.step(batch(engine, {0: chunk, 1: chunk}), mask(engine, 0, 1)).tokens[0].tolist())
            engine.close(1)
        assert got == wanted.tokens.tolist()

    def test_broken_sound_is_heard_as_silence(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=12)
        silenced = pcm.clone()
        silenced[4:7] = 0
        wanted, neighbour = converse(engine, 0, silenced), converse(engine, 1, pcm)
        pcm_broken = pcm.clone()
        pcm_broken[4, 7] = torch.nan
        pcm_broken[5, -1] = -torch.inf
        pcm_broken[6] = 1e30
        engine.open(0, GREEDY)
        engine.open(1, GREEDY)
        for frame, (broken, chunk) in enumerate(zip(pcm_broken, pcm, strict=True)):
            given = batch(engine, {0: broken, 1: chunk, 2: torch.full_like(chunk, torch.nan)})
            out = engine.step(given, mask(engine, 0, 1))
            assert out.damaged.tolist() == [frame in (4, 5, 6), False, False]
            assert out.tokens[0].tolist() == wanted.tokens[frame].tolist()
            assert out.tokens[1].tolist() == neighbour.tokens[frame].tolist()
            assert out.pcm.isfinite().all()

    @pytest.mark.parametrize("use_sampling", [True, False])
    def test_padding_bonus_silences_and_rouses(self, engine: Engine, use_sampling: bool) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=13)
        said = [
            converse(engine, 0, pcm, SamplingParams(use_sampling=use_sampling, pad_mult=bonus)).tokens[:, 0]
            for bonus in (100.0, -100.0)
        ]
        assert set(said[0][engine.delay_frames :].tolist()) == {engine.text_padding_id}
        assert engine.text_padding_id not in said[1].tolist()

    def test_warm_up_leaves_no_trace(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=14)
        before = converse(engine, 0, pcm, SAMPLED, seed=2)
        engine.warm_up()
        assert engine.open_slots == ()
        assert_same(converse(engine, 0, pcm, SAMPLED, seed=2), before)

    def test_arrays_and_tensors_alike(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=15)
        wanted = converse(engine, 0, pcm)
        engine.open(0, GREEDY)
        for frame, chunk in enumerate(pcm):
            given = batch(engine, {0: chunk}).numpy()
            given.setflags(write=False)
            out = engine.step(given, np.array([True, False, False]))
            assert out.tokens[0].tolist() == wanted.tokens[frame].tolist()

    def test_output_belongs_to_the_caller(self, engine: Engine) -> None:
        pcm = sound(FRAMES, engine.frame_size, seed=16)
        wanted = converse(engine, 0, pcm)
        engine.open(0, GREEDY)
        for frame, chunk in enumerate(pcm):
            given = batch(engine, {0: chunk, 1: torch.full_like(chunk, torch.nan)})
            kept = given.clone()
            out = engine.step(given, mask(engine, 0))
            torch.testing.assert_close(given, kept, equal_nan=True, rtol=0, atol=0)
            assert out.tokens[0].tolist() == wanted.tokens[frame].tolist()
            for tensor in (out.pcm, out.tokens, out.logprob, out.text):
                tensor.zero_()

    def test_shapes_and_types(self, engine: Engine) -> None:
        engine.open(0)
        out = engine.step(batch(engine, {}), mask(engine, 0))
        columns = 1 + engine.model_codebooks + engine.user_codebooks
        assert (out.pcm.dtype, out.pcm.shape) == (torch.float32, (SLOTS, engine.frame_size))
        assert (out.text.dtype, out.text.shape) == (torch.int64, (SLOTS,))
        assert (out.tokens.dtype, out.tokens.shape) == (torch.int64, (SLOTS, columns))
        assert (out.logprob.dtype, out.logprob.shape) == (torch.float32, (SLOTS,))
        assert (out.damaged.dtype, out.damaged.shape) == (torch.bool, (SLOTS,))
        assert engine.frame_size == engine.sample_rate / engine.frame_rate
