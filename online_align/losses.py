"""Preference losses on log-probabilities, and how a reply's frames are weighed into one number.

Everything is float32 or wider and differentiable with respect to the policy's log-probabilities. Only streams of the
model's own are ever scored: its text by default, its audio on top for the ablation of section 1.7 of the paper (which
found it unstable). Padding frames count: whether the model is silent or speaks *is* the text stream's timing.

Notation, per pair, with w the chosen and l the rejected reply: `r = log pi(y) - log ref(y)` summed over the scored
frames, `n` their weight, `s` the logistic function.

Legend: B pairs, T frames.
"""

from collections.abc import Callable
from typing import Final

import msgspec
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = [
    "LOSSES",
    "PairLoss",
    "Scored",
    "anchor",
    "apo_zero",
    "cdpo",
    "credit_window",
    "dpo",
    "dpo_ln",
    "ipo",
    "kto",
    "mix_streams",
    "score",
    "simpo",
]


class Scored(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Sums of log-probabilities of B pairs, in nats, and what was summed."""

    chosen: Tensor
    """`[B]`: of the chosen reply, by the policy."""
    rejected: Tensor
    chosen_reference: Tensor
    """`[B]`: of the chosen reply, by the reference; no gradient flows into it."""
    rejected_reference: Tensor
    chosen_length: Tensor
    """`[B]`: sum of the weights of the chosen reply's frames."""
    rejected_length: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """`r_w`, `[B]`."""
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> Tensor:
        """`r_l`, `[B]`."""
        return self.rejected - self.rejected_reference


PairLoss = Callable[[Scored, float], Tensor]
"""From scored pairs and beta to one loss for each pair, `[B]`."""


def score(logprob_BT: Tensor, weight_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh frames into one number for each reply: the sum `[B]` and the length `[B]`.

    Frames of weight 0 may hold anything, NaN included: nothing of them reaches the sum or its gradient.
    """
    counted = weight_BT != 0
    kept_BT = torch.where(counted, logprob_BT.float(), 0.0)
    return (kept_BT * weight_BT).sum(1), weight_BT.float().sum(1)


def credit_window(
    event_B: Tensor, length_B: Tensor, frames: int, *, frame_rate: float, before_s: float = 1.0, after_s: float = 2.0
) -> Tensor:
    """Weight 1 for frames within a window round each pair's event, float32 `[B, T]` with T = `frames`.

    `event_B` int64 is the frame of the event, `length_B` int64 how many frames the reply has; frames beyond a reply's
    end weigh 0. The default window, -1 s to +2 s, is that of ASPIRin's credit assignment; a longer lead hurt there.
    Both sides of a timing pair get the same window.
    """
    frame_T = torch.arange(frames, device=event_B.device)
    first_B, last_B = event_B - round(before_s * frame_rate), event_B + round(after_s * frame_rate)
    inside = (frame_T >= first_B[:, None]) & (frame_T <= last_B[:, None]) & (frame_T < length_B[:, None])
    return inside.float()


def mix_streams(text_BT: Tensor, audio_BTQ: Tensor | None, *, audio_weight: float = 0.0) -> Tensor:
    """Log-probability of a frame, `[B, T]`: its text token, plus `audio_weight` times the mean of its audio tokens."""
    if audio_weight == 0.0 or audio_BTQ is None:
        return text_BT
    return text_BT + audio_weight * audio_BTQ.mean(-1)


def dpo(pairs: Scored, beta: float) -> Tensor:
    """`-log s(beta (r_w - r_l))`: Rafailov et al. 2023, arXiv 2305.18290, equation 7."""
    return -logsigmoid(beta * (pairs.chosen_ratio - pairs.rejected_ratio))


def dpo_ln(pairs: Scored, beta: float) -> Tensor:
    """`-log s(beta (r_w / n_w - r_l / n_l))`: length-normalised, what Wu et al. (arXiv 2506.21463) train with."""
    margin = pairs.chosen_ratio / pairs.chosen_length - pairs.rejected_ratio / pairs.rejected_length
    return -logsigmoid(beta * margin)


def simpo(pairs: Scored, beta: float, *, gamma: float = 0.5) -> Tensor:
    """`-log s(beta (log pi(w) / n_w - log pi(l) / n_l) - gamma)`, without a reference: Meng et al. 2024, 2405.14734.

    `gamma` is the margin itself, as in the paper's equation 6, not its ratio to beta. With nothing to hold on to, the
    policy drifts further than with the others: watch its divergence from the base.
    """
    margin = pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length
    return -logsigmoid(beta * margin - gamma)


def apo_zero(pairs: Scored, beta: float) -> Tensor:
    """`(1 - s(beta r_w)) + s(beta r_l)`: D'Oosterlinck et al. 2024, arXiv 2408.06266, section 4.

    It raises the chosen reply for itself and lowers the rejected one: for pairs whose chosen reply is better than what
    the policy says now.
    """
    return (1 - torch.sigmoid(beta * pairs.chosen_ratio)) + torch.sigmoid(beta * pairs.rejected_ratio)


def ipo(pairs: Scored, beta: float) -> Tensor:
    """`(r_w / n_w - r_l / n_l - 1 / (2 beta))**2`: Azar et al. 2023, arXiv 2310.12036, equation 17.

    Over mean log-probabilities, as its authors found necessary. `beta` is their tau: the margin aimed at is bounded, so
    clean pairs are not over-fitted.
    """
    margin = pairs.chosen_ratio / pairs.chosen_length - pairs.rejected_ratio / pairs.rejected_length
    return (margin - 1 / (2 * beta)) ** 2


def cdpo(pairs: Scored, beta: float, *, flipped: float = 0.1) -> Tensor:
    """DPO where a share `flipped` of the labels is wrong: `(1 - e)` of the loss, and `e` of that of the other order.

    Mitchell 2023, "A note on DPO with noisy preferences". Raises `ValueError` unless `flipped` is from 0 to below 0.5.
    """
    if not 0 <= flipped < 0.5:
        raise ValueError(f"flipped = {flipped}; expected a share of wrong labels from 0 to below 0.5; measure it")
    margin = beta * (pairs.chosen_ratio - pairs.rejected_ratio)
    return -(1 - flipped) * logsigmoid(margin) - flipped * logsigmoid(-margin)


def kto(
    ratio_B: Tensor,
    desirable_B: Tensor,
    divergence: Tensor,
    beta: float,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Unpaired praise and complaints, `[B]`: `w (1 - s(beta (r - z)))`, or `w (1 - s(beta (z - r)))` for complaints.

    Ethayarajh et al. 2024, arXiv 2402.01306, equation 8. `ratio_B` is r, `desirable_B` bool, and `divergence` z: an
    estimate, from replies that belong to other calls, of how far the policy is from the reference; it is clamped to 0
    and no gradient flows through it.
    """
    baseline = divergence.detach().clamp(min=0)
    gain = torch.where(desirable_B, ratio_B - baseline, baseline - ratio_B)
    weight = torch.where(desirable_B, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(beta * gain))


def anchor(logprob_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """Mean negative log-probability of good spans, `[B]`: keeps what was said well likely while margins grow.

    A reply of which nothing is weighed gives 0.
    """
    total_B, length_B = score(logprob_BT, weight_BT)
    return -total_B / length_B.clamp(min=1.0)


LOSSES: Final[dict[str, PairLoss]] = {
    "dpo": dpo,
    "dpo-ln": dpo_ln,
    "simpo": simpo,
    "apo-zero": apo_zero,
    "ipo": ipo,
    "cdpo": cdpo,
}
"""The losses over pairs, by the names that settings use."""
