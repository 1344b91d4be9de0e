"""What can be set about learning: one frozen struct, with the values that work for the embedded model.

The paper's own values for 7 B parameters are beta 0.3, batch 16, one pass, and, for adapters of rank 128, a learning
rate of 2e-6. It knows nothing of what the fields do.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from online_align.losses import LOSSES
from online_align.unpaired import KTO

__all__ = ["LearnerSettings", "LossName"]

LossName = Literal["dpo", "dpo-ln", "simpo", "apo-zero", "ipo", "cdpo", "kto"]
assert {*LOSSES, KTO} == set(LossName.__args__), "one list of losses"  # type: ignore[attr-defined]


class LearnerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an adapter is trained. Every adapter's manifest carries the settings that made it."""

    loss: LossName = "dpo-ln"
    beta: Annotated[float, Meta(gt=0)] = 0.3
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 1e-3
    """Of the temporal transformer's adapters; it rises over the first steps and falls as a cosine to a tenth."""
    depth_learning_rate: Annotated[float, Meta(gt=0, le=1)] = 1e-3
    """Of the depth transformer's, which learn only when sound is scored."""
    warm_up_steps: Annotated[int, Meta(ge=0)] = 2
    batch: Annotated[int, Meta(ge=1)] = 8
    """Pairs of one step."""
    rank: Annotated[int, Meta(ge=1, le=128)] = 16
    scaling: Annotated[float, Meta(gt=0)] = 2.0
    clip: Annotated[float, Meta(gt=0)] = 1.0
    """Longest gradient."""
    anchor: Annotated[float, Meta(ge=0)] = 3.0
    """Weight of the supervised term: mean negative log-probability of the chosen sides."""
    replay: Annotated[float, Meta(ge=0, le=1)] = 0.25
    """Chosen sides of earlier rounds for each new pair. They are learned from by the supervised term alone: no pair's
    preference is trained twice."""
    good: Annotated[float, Meta(ge=0, le=10)] = 2.0
    """Good spans (`good_spans`) for each new pair, by the supervised term alone."""
    context_s: Annotated[float, Meta(gt=0)] | None = None
    """Seconds of the past that are read; None is all that a pair has."""
    audio_weight: Annotated[float, Meta(ge=0)] = 0.0
    """How much a frame's sound counts beside its text: an ablation, not a recommendation."""
    positions: Annotated[int, Meta(ge=1)] = 768
    """Most positions read at once: bounds the memory of a step, and changes no result."""
    checkpointing: bool = False
    """Compute inner values again for the gradient: slower and smaller."""
    seed: Annotated[int, Meta(ge=0)] = 0
