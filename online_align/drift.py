"""How far a policy has gone from where it began: divergence of its text stream on given pairs. It trains nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from online_align.batches import batches, pack
from online_align.learner import context_of
from online_align.policy import Policy
from online_align.records import Pair
from online_align.settings import LearnerSettings

__all__ = ["divergence_from"]


def divergence_from(
    policy: Policy, before: Mapping[str, Tensor], pairs: Sequence[Pair], settings: LearnerSettings
) -> float:
    """Mean KL(policy || as it was with `before`) over the chosen sides' frames of `pairs`, in nats a frame.

    `before` are copies of `Policy.learned`. Raises `PairError`.
    """
    rows = [pack(pair, policy.grid, context=context_of(policy, settings)) for pair in pairs]
    total, frames = 0.0, 0.0
    for batch in batches(rows, policy.grid, policy.text_linear.weight.device, positions=settings.positions):
        count = float(batch.real_B2N[:, 0].sum())
        total += count * policy.divergence(batch, lambda: _as_it_was(policy, before))
        frames += count
    return total / max(1.0, frames)


@contextmanager
@torch.no_grad()
def _as_it_was(policy: Policy, before: Mapping[str, Tensor]) -> Iterator[None]:
    now = {name: part.detach().clone() for name, part in policy.learned().items()}
    policy.learn_from(before)
    try:
        yield
    finally:
        policy.learn_from(now)
