"""KTO in a pass over pairs: what people minded and what they did not, each judged for itself and not against another.

Complaints are rejected sides. Praise are chosen sides, and good spans (`good_spans`): what was really said and nobody
minded. How far the policy has gone is estimated, as KTO asks, on replies that do not belong where they are put: each
call's past with another's chosen side. It knows no weights, files or rounds.

Legend: B pairs, N scored frames of the longer side.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor

from online_align.batches import Batch
from online_align.good_spans import is_good_span
from online_align.losses import LOSSES, Scored, kto, score
from online_align.records import Pair, PairKind, Side

__all__ = ["KTO", "balance", "loss_of", "mismatched", "praise"]

KTO: Final = "kto"


def loss_of(
    name: str, scored: Scored, beta: float, *, divergence: Tensor | None = None, praise_weight: float = 1.0
) -> Tensor:
    """A loss for each pair, `[B]`, by its name in the settings.

    `divergence` and `praise_weight` are KTO's: nats, a scalar, 0 where it was not measured; and what a chosen side
    weighs beside a rejected one.
    """
    if name != KTO:
        return LOSSES[name](scored, beta)
    far = torch.zeros((), device=scored.chosen.device) if divergence is None else divergence
    good_B = torch.ones_like(scored.chosen, dtype=torch.bool)
    chosen_B = kto(scored.chosen_ratio, good_B, far, beta, desirable_weight=praise_weight)
    return chosen_B + kto(scored.rejected_ratio, ~good_B, far, beta)


def praise(logp_B2N: Tensor, batch: Batch, beta: float, *, divergence: Tensor, weight: float) -> Tensor:
    """KTO's loss for the good spans of a batch, `[B]`; 0 for what is none, or has no reference."""
    known_B = torch.tensor([is_good_span(pair) and pair.reference is not None for pair in batch.pairs])
    reference_BN = torch.zeros_like(logp_B2N[:, 0])
    for row, pair in zip(reference_BN, batch.pairs, strict=True):
        if pair.reference is not None:
            said_T = torch.from_numpy(pair.reference.chosen_T[: len(row)])
            row[: len(said_T)] = said_T.to(row.device)
    credit_BN = batch.credit_B2N[:, 0]
    ratio_B = score(logp_B2N[:, 0], credit_BN)[0] - score(reference_BN, credit_BN)[0]
    good_B = torch.ones_like(ratio_B, dtype=torch.bool)
    return kto(ratio_B, good_B, divergence, beta, desirable_weight=weight) * known_B.to(ratio_B.device)


def balance(complaints: int, praises: int) -> float:
    """What one praise weighs, so that all of them weigh as much as all complaints (section 4.2 of the paper)."""
    return complaints / max(1, praises)


def mismatched(pairs: Sequence[Pair]) -> list[Pair]:
    """Every call's past with the next call's chosen side, which does not belong there; none for fewer than two calls.

    Their rejected side is a single frame that nobody looks at.
    """
    ordered = sorted(pairs, key=lambda pair: pair.id)
    found = []
    for place, pair in enumerate(ordered):
        other = next((each for each in ordered[place + 1 :] + ordered[:place] if each.session != pair.session), None)
        if other is not None:
            one = Side(tokens_TK=other.chosen.tokens_TK[:1], words="")
            found.append(
                msgspec.structs.replace(
                    pair, id=f"{pair.id}~{other.id}", kind=PairKind.CONTENT, event=0, chosen=other.chosen,
                    rejected=one, reference=None,
                )
            )  # fmt: skip
    return found
