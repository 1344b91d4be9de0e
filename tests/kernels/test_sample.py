"""Sampling: against its reference, against the engine's own sampling, and its statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import sample as module
from kernels.sample import gumbel_reference, sample_topk, sample_topk_reference
from server.engine.noise import NoiseSource
from server.engine.params import SamplingParams
from server.engine.sampling import RowSampling
from tests.kernels.interpreter import Guarded

PAD = 3


def rows(count: int, **changes: Any) -> dict[str, Any]:
    """Parameters of `count` rows; a change is a list of a row's numbers."""
    made = {
        "temperature": torch.ones(count),
        "top_k": torch.full((count,), 10_000),
        "noise_scale": torch.ones(count),
        "pad_mult": torch.zeros(count),
        "seed": torch.arange(count),
        "frame": torch.zeros(count, dtype=torch.int64),
    }
    return made | {name: torch.tensor(values, dtype=made[name].dtype) for name, values in changes.items()}


def both(logits: Tensor, how: dict[str, Any], codebook: int = 0, pad_id: int = PAD) -> tuple[Tensor, Tensor]:
    """The kernel's tokens and log-probabilities, which must be the reference's."""
    count = len(logits)
    token, logprob = Guarded(count, dtype=torch.int64), Guarded(count)
    sample_topk(
        logits,
        logits,
        *how.values(),
        torch.ones(count, dtype=torch.bool),
        codebook,
        pad_id,
        token.tensor,
        logprob.tensor,
    )
    want, likely = sample_topk_reference(logits, logits, **how, codebook=codebook, pad_id=pad_id)
    token.check()
    logprob.check()
    assert torch.equal(token.tensor, want)
    assert torch.allclose(logprob.tensor, likely, atol=2e-6)
    return token.tensor, logprob.tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("card", "block"), [(5, 16), (44, 16), (44, 64), (129, 64), (130, 256)])
def test_equals_its_reference(card: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    how = rows(
        6,
        temperature=[0.7, 0.8, 1.0, 1.0, 3.0, 0.01],
        top_k=[5, 25, 1, card, 2, 4],
        noise_scale=[1, 1, 1, 0, 1, 1],
        pad_mult=[0, 2, -100, 1, 0, 5],
        seed=[0, 2**62 + 5, 1, 7, 2**63 - 1, 9],
        frame=[0, 5, 2**31 + 9, 2**32 - 1, 1, 1],
    )
    for codebook in (0, 8):
        both(draw(6, card, seed=codebook), how, codebook)


def test_ties_at_the_kth_value_stay_in() -> None:
    """Three equal values and room for two: all three are drawn, and nothing else is."""
    logits = torch.tensor([0.0, 1.0, -5.0, 1.0, 1.0, 0.9]).repeat(24, 1)
    token, _ = both(logits, rows(24, top_k=[2] * 24), pad_id=-1)
    assert set(token.tolist()) == {1, 3, 4}


def test_equal_logits_and_signed_zeros() -> None:
    both(torch.tensor([[0.0, -0.0, -1.0, 0.0], [-0.0, -0.0, -0.0, -0.0]]), rows(2, top_k=[1, 1]), pad_id=-1)
    token, _ = both(torch.zeros(1, 9), rows(1, noise_scale=[0]), pad_id=-1)
    assert token.tolist() == [0]


def test_huge_and_hopeless_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first block in which nothing is possible, too."""
    monkeypatch.setattr(module, "BLOCK", 4)
    nothing = -torch.inf
    logits = torch.tensor([[1e38, -1e38, nothing, 0.0, 0.0], [nothing, nothing, nothing, nothing, -2.0]])
    both(logits, rows(2, top_k=[2, 2]))


def test_rows_that_do_not_move_keep_what_they_had() -> None:
    logits = draw(2, 9)
    logits[0] = torch.nan
    token, logprob = torch.tensor([5, 5]), torch.tensor([9.0, 9.0])
    sample_topk(logits, logits, *rows(2).values(), torch.tensor([False, True]), 0, -1, token, logprob)
    assert token[0] == 5
    assert logprob[0] == 9.0
    assert logprob[1] < 0.0


def test_the_log_probability_is_that_of_the_raw_logits() -> None:
    raw, punished = draw(3, 9), draw(3, 9, seed=1)
    token, logprob = torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    how = rows(3, temperature=[0.5, 1.0, 2.0])
    sample_topk(punished, raw, *how.values(), torch.ones(3, dtype=torch.bool), 0, PAD, token, logprob)
    assert torch.allclose(logprob, raw.log_softmax(-1).gather(1, token[:, None])[:, 0], atol=1e-6)


def test_noise_is_the_engines() -> None:
    seed, frame = torch.tensor([3, 2**62 + 1]), torch.tensor([0, 77])
    text, audio = NoiseSource(text_card=10, dep_q=2, card=7, device=torch.device("cpu")).gumbel(seed, frame)
    assert torch.equal(gumbel_reference(seed, frame, 0, 10), text)
    for codebook in range(2):
        assert torch.equal(gumbel_reference(seed, frame, codebook + 1, 7), audio[:, codebook])


def test_tokens_are_the_engines() -> None:
    """`server.engine.sampling`, which every way of working must equal."""
    params = [SamplingParams(), SamplingParams(use_sampling=False), SamplingParams(text_topk=2, pad_mult=1.5)]
    sampling = RowSampling(rows=3, text_card=40, dep_q=1, card=40, padding_ids=(PAD, 0), device=torch.device("cpu"))
    for row, chosen in enumerate(params):
        sampling.set(row, chosen, seed=row)
    sampling.begin_frame(torch.tensor([4, 5, 6]))
    logits = draw(3, 40)
    want, likely = sampling.pick_text(logits)
    how = rows(3, temperature=[0.7, 1, 0.7], top_k=[25, 40, 2], noise_scale=[1, 0, 1], pad_mult=[0, 0, 1.5],
               seed=[0, 1, 2], frame=[4, 5, 6])  # fmt: skip
    token, logprob = both(logits, how)
    assert torch.equal(token, want)
    assert torch.allclose(logprob, likely, atol=2e-6)


def test_draws_follow_the_softmax() -> None:
    """2,000 draws of four tokens: within five standard deviations of what the softmax says."""
    draws = 2000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    how = {name: values.expand(draws).contiguous() for name, values in rows(1).items()}
    how["frame"] = torch.arange(draws)
    token, _ = sample_topk_reference(logits.repeat(draws, 1), logits.repeat(draws, 1), **how, codebook=1, pad_id=-1)
    share = torch.bincount(token, minlength=4) / draws
    expected = logits.softmax(0)
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt()).all()


def test_opcheck_and_refusals() -> None:
    logits, how, moving = draw(2, 6), rows(2, top_k=[2, 3]), torch.ones(2, dtype=torch.bool)
    token, logprob = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    torch.library.opcheck(sample_topk, (logits, logits.clone(), *how.values(), moving, 0, PAD, token, logprob))
    with pytest.raises(ValueError, match="pad_id is 6"):
        sample_topk(logits, logits, *how.values(), moving, 0, 6, token, logprob)
    with pytest.raises(ValueError, match="token is"):
        sample_topk(logits, logits, *how.values(), moving, 0, PAD, token.int(), logprob)
