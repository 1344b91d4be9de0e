"""What the engine relies on in the `moshi` package, and the faults it works around.

When one of these fails after an upgrade, the engine's file named in the test is to be read again.
"""

from pathlib import Path

import pytest
import torch
from moshi.models import LMGen
from moshi.utils.compile import no_compile

from tests.engine.stock import NOTHING, Stock, checkpoint_info, sound


@pytest.fixture
def fresh(tiny: Path) -> Stock:
    """Not shared: these tests leave modules in streaming mode."""
    return Stock(tiny)


def codes(stock: Stock, frames: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    users = stock.lm.n_q - stock.lm.dep_q
    return torch.randint(0, stock.lm.card, (frames, rows, users, 1), generator=generator)


def generate(stock: Stock, user: torch.Tensor) -> list[list[int]]:
    lm_gen = LMGen(stock.lm, use_sampling=False)
    with torch.no_grad(), no_compile(), lm_gen.streaming(1):
        outputs = [lm_gen.step(frame) for frame in user]
    return [out[0, :, 0].tolist() for out in outputs if out is not None]


def test_stock_loader_takes_a_local_folder(tiny: Path) -> None:
    """`checkpoint.load_checkpoint` leaves all loading to `CheckpointInfo`."""
    info = checkpoint_info(tiny)
    assert info.get_mimi().sample_rate == 16000
    assert {parameter.dtype for parameter in info.get_moshi(dtype=torch.float32).parameters()} == {torch.float32}
    assert info.get_text_tokenizer().pad_id() == 3


def test_lm_gen_ignores_the_first_user_frame(fresh: Stock) -> None:
    """`columns.TokenColumns.hears`."""
    user = codes(fresh, 8)
    other = user.clone()
    other[0] = (user[0] + 1) % fresh.lm.card
    assert generate(fresh, other) == generate(fresh, user)
    other[1] = (user[1] + 1) % fresh.lm.card
    assert generate(fresh, other) != generate(fresh, user)


def test_lm_gen_says_nothing_before_the_delay(fresh: Stock) -> None:
    """`columns.NOTHING`: None in lock step, -2 otherwise."""
    user = codes(fresh, 3)
    assert len(generate(fresh, user)) == 3 - max(fresh.lm.delays)
    lm_gen = LMGen(fresh.lm, use_sampling=False, support_out_of_sync=True)
    with torch.no_grad(), no_compile(), lm_gen.streaming(1):
        outputs = [lm_gen.step(frame) for frame in user]
    assert (outputs[0] == NOTHING).all()
    assert (outputs[1] >= 0).all()
    assert fresh.lm.ungenerated_token_id == NOTHING


def test_training_forward_takes_the_columns_as_they_are(fresh: Stock) -> None:
    """`FrameOutput.tokens`: greedy output is the argmax of the training forward at every position."""
    user = codes(fresh, 10)
    said = torch.tensor(generate(fresh, user))
    columns = torch.cat([said, user[1:, 0, :, 0]], dim=1)
    with torch.no_grad(), no_compile():
        output = fresh.lm.forward(columns.T[None])
    assert output.text_logits[0, 0].argmax(-1).tolist() == said[:, 0].tolist()
    for codebook in range(fresh.lm.dep_q):
        known = output.mask[0, codebook]
        assert output.logits[0, codebook][known].argmax(-1).tolist() == said[known, 1 + codebook].tolist()
        assert output.logits[0, codebook][~known].isnan().all(), "the delayed tail has no logits"


def test_resetting_one_row_of_lm_gen_silences_all(fresh: Stock) -> None:
    """Why the step loop is our own: in its default mode one caller's reset costs everybody a frame."""
    lm_gen = LMGen(fresh.lm, use_sampling=False)
    with torch.no_grad(), no_compile(), lm_gen.streaming(2):
        outputs = [lm_gen.step(frame) for frame in codes(fresh, 3, rows=2)]
        assert outputs[-1] is not None
        lm_gen.reset_streaming(torch.tensor([True, False]))
        assert lm_gen.step(codes(fresh, 1, rows=2)[0]) is None


def test_lm_gen_draws_from_one_generator_for_all(fresh: Stock) -> None:
    """Why noise is our own: a row's tokens depend on how often anybody sampled before."""
    lm_gen = LMGen(fresh.lm, use_sampling=True, temp=2.0, temp_text=2.0)
    runs = []
    for drawn_before in range(2):
        torch.manual_seed(0)
        torch.rand(drawn_before)
        with torch.no_grad(), no_compile(), lm_gen.streaming(1):
            runs.append([lm_gen.step(frame) for frame in codes(fresh, 6)][1:])
    assert not torch.equal(torch.cat(runs[0]), torch.cat(runs[1]))


def test_reset_switches_a_masked_row_on(fresh: Stock) -> None:
    """`rows.StreamingRows.reset` forgets the mask it had set."""
    fresh.lm.streaming_forever(2)
    fresh.lm.set_exec_mask(torch.tensor([False, False]))
    fresh.lm.reset_streaming(torch.tensor([True, False]))
    assert fresh.lm._streaming_state.exec_mask.tolist() == [True, False]


def test_depth_transformer_cannot_be_reset_in_a_batch(fresh: Stock) -> None:
    """`language.DepthStep` enters streaming anew in every frame."""
    fresh.lm.depformer.streaming_forever(2)
    with pytest.raises(RuntimeError, match="must match"):
        fresh.lm.depformer.reset_streaming()


def test_depth_transformer_does_not_follow_the_masks(fresh: Stock) -> None:
    fresh.lm.streaming_forever(2)
    fresh.lm.set_exec_mask(torch.tensor([True, False]))
    assert not fresh.lm.depformer.is_streaming


def test_codec_has_one_mask_for_both_directions(fresh: Stock) -> None:
    """`full_width.StreamingCodec` sets it before each half; a masked row's encoder and decoder both stand still."""
    pcm = sound(5, fresh.mimi.frame_size, seed=1)
    spoken = torch.randint(0, 32, (5, 1, fresh.lm.dep_q, 1), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), no_compile():
        with fresh.mimi.streaming(1):
            wanted_codes = [fresh.mimi.encode(chunk[None, None]) for chunk in pcm]
            wanted_sound = [fresh.mimi.decode(token) for token in spoken]
        with fresh.mimi.streaming(1):
            for step in range(5):
                fresh.mimi.set_exec_mask(torch.tensor([False]))
                fresh.mimi.encode(pcm[0][None, None])
                fresh.mimi.decode(spoken[0])
                fresh.mimi.set_exec_mask(torch.tensor([True]))
                assert torch.equal(fresh.mimi.encode(pcm[step][None, None]), wanted_codes[step])
                torch.testing.assert_close(fresh.mimi.decode(spoken[step]), wanted_sound[step])


def test_codec_cannot_decode_what_is_not_there(fresh: Stock) -> None:
    """`full_width.StreamingCodec.decode` clamps: upstream looks -2 up in the codebook."""
    with torch.no_grad(), no_compile(), pytest.raises(IndexError):
        fresh.mimi.decode(torch.full((1, fresh.lm.dep_q, 1), NOTHING))


def test_nan_stays_in_the_attention_cache(fresh: Stock) -> None:
    """Why broken sound is silenced at the door: a masked position still multiplies its value by zero."""
    pcm = sound(12, fresh.mimi.frame_size, seed=3)
    broken = pcm.clone()
    broken[2] = torch.nan
    with torch.no_grad(), no_compile(), fresh.mimi.streaming(1):
        wanted = [fresh.mimi.encode_to_latent(chunk[None, None], quantize=False) for chunk in pcm]
    with torch.no_grad(), no_compile(), fresh.mimi.streaming(1):
        latents = [fresh.mimi.encode_to_latent(chunk[None, None], quantize=False) for chunk in broken]
    assert wanted[6].isfinite().all()
    assert latents[6].isnan().any()
