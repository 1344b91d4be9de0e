"""Each loss against numbers worked out by hand, its gradient against differences, and what must not reach either."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from online_align.losses import (
    LOSSES,
    Scored,
    anchor,
    cdpo,
    credit_window,
    kto,
    mix_streams,
    score,
    simpo,
)


def pair(chosen: float, rejected: float, chosen_reference: float, rejected_reference: float, *lengths: float) -> Scored:
    values = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected)]
    references = [torch.tensor([value], dtype=torch.float64) for value in (chosen_reference, rejected_reference)]
    sizes = [torch.tensor([value], dtype=torch.float64) for value in lengths or (10.0, 10.0)]
    return Scored(
        chosen=values[0],
        rejected=values[1],
        chosen_reference=references[0],
        rejected_reference=references[1],
        chosen_length=sizes[0],
        rejected_length=sizes[1],
    )


# The policy is 2 nats above the reference on the chosen reply of 10 frames, 1 below on the rejected one of 5.
EXAMPLE = pair(-8.0, -13.0, -10.0, -12.0, 10.0, 5.0)
BY_HAND = {
    # margin 2 - (-1) = 3; log(1 + e^-0.9) = log(1.406570)
    "dpo": 0.341154,
    # margin 0.2 + 0.2 = 0.4; log(1 + e^-0.12) = log(1.886920)
    "dpo-ln": 0.634946,
    # margin -0.8 + 2.6 = 1.8; log(1 + e^-(0.54 - 0.5)) = log(1.960789)
    "simpo": 0.673347,
    # 1 - s(0.6) + s(-0.3) = 0.354344 + 0.425557
    "apo-zero": 0.779901,
    # margin 0.4 as above, aim 1.666667: the square of their difference
    "ipo": 1.604444,
    # 0.9 log(1 + e^-0.9) + 0.1 log(1 + e^0.9) = 0.307039 + 0.124115
    "cdpo": 0.431154,
}


@pytest.mark.parametrize("name", LOSSES)
def test_by_hand(name: str) -> None:
    assert LOSSES[name](EXAMPLE, 0.3).item() == pytest.approx(BY_HAND[name], abs=1e-5)


def test_kto_by_hand() -> None:
    """Ratios 2 and -1 against a baseline of 0.5: 1 - s(0.45), and 1 - s(0.45) for the complaint, weighed double."""
    ratio = torch.tensor([2.0, -1.0])
    got = kto(ratio, torch.tensor([True, False]), torch.tensor(0.5), 0.3, undesirable_weight=2.0)
    inner = 1 - 1 / (1 + math.exp(-0.45))
    assert got.tolist() == pytest.approx([inner, 2 * inner], abs=1e-6)
    below = kto(ratio, torch.tensor([True, False]), torch.tensor(-3.0), 0.3)
    assert below.tolist() == pytest.approx(kto(ratio, torch.tensor([True, False]), torch.tensor(0.0), 0.3).tolist())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 0.3, 2.0])
def test_gradient_against_differences(name: str, beta: float) -> None:
    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        base = pair(0, 0, -10.0, -12.0, 10.0, 5.0)
        scored = Scored(
            chosen=chosen,
            rejected=rejected,
            chosen_reference=base.chosen_reference,
            rejected_reference=base.rejected_reference,
            chosen_length=base.chosen_length,
            rejected_length=base.rejected_length,
        )
        return LOSSES[name](scored, beta)

    start = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-9.3, -12.4)]
    assert torch.autograd.gradcheck(loss, start)


@pytest.mark.parametrize("name", LOSSES)
@given(
    numbers=st.tuples(*[st.floats(-60, 0)] * 4),
    lengths=st.tuples(*[st.integers(1, 200)] * 2),
    beta=st.sampled_from([0.1, 0.3, 0.5, 2.0]),
)
def test_more_of_the_chosen_and_less_of_the_rejected_is_never_worse(
    name: str, numbers: tuple[float, ...], lengths: tuple[int, int], beta: float
) -> None:
    """True of all but the two that aim at a margin, beyond that margin."""
    here = pair(*numbers, *lengths)
    difference = float(here.chosen_ratio - here.rejected_ratio)
    margin = float(here.chosen_ratio / here.chosen_length - here.rejected_ratio / here.rejected_length)
    assume(name != "ipo" or margin + 2 <= 1 / (2 * beta))
    assume(name != "cdpo" or beta * (difference + 1) <= math.log(9))
    chosen, rejected, *references = numbers
    better = pair(chosen + 1.0, rejected, *references, *lengths)
    worse = pair(chosen, rejected + 1.0, *references, *lengths)
    loss = LOSSES[name]
    assert loss(better, beta) <= loss(here, beta) + 1e-12
    assert loss(worse, beta) >= loss(here, beta) - 1e-12


def test_where_policy_and_reference_agree() -> None:
    same = pair(-5.0, -7.0, -5.0, -7.0, 4.0, 9.0)
    for name in ("dpo", "dpo-ln", "cdpo"):
        assert LOSSES[name](same, 0.3).item() == pytest.approx(math.log(2))
    assert LOSSES["apo-zero"](same, 0.3).item() == pytest.approx(1.0)


def test_length_normalisation_only_rescales_beta_over_equal_windows() -> None:
    equal = pair(-8.0, -13.0, -10.0, -12.0, 25.0, 25.0)
    assert LOSSES["dpo-ln"](equal, 0.3).item() == pytest.approx(LOSSES["dpo"](equal, 0.3 / 25).item())


def test_simpo_ignores_the_reference_and_cdpo_its_noise_at_zero() -> None:
    other = pair(-8.0, -13.0, -99.0, -1.0, 10.0, 5.0)
    assert simpo(other, 0.3).item() == simpo(EXAMPLE, 0.3).item()
    assert cdpo(EXAMPLE, 0.3, flipped=0.0).item() == pytest.approx(LOSSES["dpo"](EXAMPLE, 0.3).item())
    with pytest.raises(ValueError, match=r"flipped = 0.5; expected a share"):
        cdpo(EXAMPLE, 0.3, flipped=0.5)


def test_frames_that_do_not_count_touch_nothing() -> None:
    """The paths that were never walked hold NaN and infinity, as padded batches do."""
    logprob = torch.tensor([[-1.0, -2.0, torch.nan], [-3.0, -torch.inf, -5.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.5, 0.0], [2.0, 0.0, 1.0]])
    total, length = score(logprob, weight)
    assert total.tolist() == [-2.0, -11.0]
    assert length.tolist() == [1.5, 3.0]
    (gradient,) = torch.autograd.grad(total.sum(), logprob)
    assert gradient.tolist() == [[1.0, 0.5, 0.0], [2.0, 0.0, 1.0]]


def test_half_precision_is_summed_in_full() -> None:
    logprob = torch.full((1, 4096), -0.0244140625, dtype=torch.bfloat16)
    total, _ = score(logprob, torch.ones(1, 4096))
    assert total.item() == -100.0


def test_credit_window() -> None:
    window = credit_window(torch.tensor([15, 3]), torch.tensor([100, 10]), 50, frame_rate=12.5)
    assert window[0].nonzero().flatten().tolist() == list(range(3, 41))
    assert window[1].nonzero().flatten().tolist() == list(range(10)), "not before the reply, nor beyond its end"


def test_anchor_is_a_mean_over_what_counts() -> None:
    logprob, weight = torch.tensor([[-1.0, -3.0, -9.0], [-1.0, -1.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0] * 3])
    assert anchor(logprob, weight).tolist() == [2.0, 0.0]


def test_audio_is_mixed_in_only_when_asked() -> None:
    text, audio = torch.tensor([[-1.0]]), torch.tensor([[[-2.0, -4.0]]])
    assert mix_streams(text, audio).item() == -1.0
    assert mix_streams(text, None, audio_weight=1.0).item() == -1.0
    assert mix_streams(text, audio, audio_weight=0.5).item() == -2.5
