"""What a step, a pass or an evaluation came to, in figures, and how those of many add up. It trains nothing."""

import msgspec
import torch
from torch import Tensor

from online_align.losses import Scored

__all__ = ["Figures", "mean_of", "summed", "sums_of"]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a step or an evaluation came to. Log-probabilities in nats."""

    loss: float
    margin: float
    """Mean over pairs of `r_w / n_w - r_l / n_l`: how much more each frame of the chosen side has gained."""
    accuracy: float
    """Share of pairs with a margin above 0."""
    chosen_logp: float
    """Mean log-probability of a chosen frame."""
    pairs: int
    seconds: float = 0.0


def sums_of(scored: Scored, loss_B: Tensor, real_B: Tensor) -> dict[str, float]:
    """Of a batch: sums over the pairs that count, which are those with 1 in `real_B`."""
    margin_B = scored.chosen_ratio / scored.chosen_length - scored.rejected_ratio / scored.rejected_length
    each = {
        "loss": loss_B,
        "margin": margin_B,
        "accuracy": (margin_B > 0).float(),
        "chosen_logp": scored.chosen / scored.chosen_length,
        "pairs": torch.ones_like(loss_B),
    }
    return {name: float((value.detach() * real_B).sum()) for name, value in each.items()}


def summed(figures: Figures) -> dict[str, float]:
    """Figures as sums again, to which those of other steps can be added."""
    means = msgspec.structs.asdict(figures)
    return {name: value * (1 if name in ("pairs", "seconds") else figures.pairs) for name, value in means.items()}


def mean_of(sums: dict[str, float]) -> Figures:
    """The means over all pairs that the sums are of."""
    count = sums.get("pairs", 0.0)
    means = {name: sums.get(name, 0.0) / max(1.0, count) for name in ("loss", "margin", "accuracy", "chosen_logp")}
    return Figures(pairs=round(count), seconds=sums.get("seconds", 0.0), **means)
