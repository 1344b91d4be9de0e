"""Which side of people's pairs a model prefers, by person: one who gave many pairs counts as one person.

A model prefers the chosen side when its length-normalised log-ratio to the base model is higher there, over the frames
that the loss scores (`losses.credit_window` for timing, the whole reply for content): the sign of what DPO-LN trains.
Uncertainty is that of drawing people, not pairs: intervals are a bootstrap over people (Efron 1979).

Legend: N pairs, T frames.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import Tensor

from online_align.losses import credit_window
from online_align.probes.drift import columns_batch, text_logits, using
from online_align.records import Pair, Side
from server.engine.adapters import AdapterFile

__all__ = ["Agreement", "agreement", "margins"]

_FRAME_RATE_HZ: Final = 12.5
"""Of Mimi, and so of every model in Moshi's layout."""
_DRAWS: Final = 2000
_BATCH: Final = 8
_PAST_FRAMES: Final = 250
"""As much of the past as is read: 20 s."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How often the chosen side is preferred. Shares; None where there is no pair."""

    pairs: int
    people: int
    """Anonymous callers are one person together, as in the caps."""
    share: float | None
    """Mean over people of each one's share."""
    low: float | None
    """95 % interval over people."""
    high: float | None
    by_kind: dict[str, float]
    """Share of each kind of pair, every pair counting alike."""


def margins(lm: Any, pairs: Sequence[Pair], file: AdapterFile | None) -> list[float]:
    """Each pair's `r_w / n_w - r_l / n_l` in nats a frame, the base model being the reference; 0 without an adapter."""
    if file is None or not pairs:
        return [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].context_PK))
    found: dict[int, float] = {}
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        some = [pairs[i] for i in batch]
        chosen = _ratios(lm, some, [pair.chosen for pair in some], file)
        rejected = _ratios(lm, some, [pair.rejected for pair in some], file)
        found |= dict(zip(batch, (chosen - rejected).tolist(), strict=True))
    return [found[i] for i in range(len(pairs))]


def agreement(pairs: Sequence[Pair], margins_N: Sequence[float]) -> Agreement:
    """How often margins favour the chosen side; a margin of exactly 0 is half a preference."""
    wins = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins_N]
    by_person, by_kind = defaultdict(list), defaultdict(list)
    for pair, win in zip(pairs, wins, strict=True):
        by_person[pair.user_hash].append(win)
        by_kind[pair.kind.value].append(win)
    shares = np.array([np.mean(each) for each in by_person.values()])
    low, high = _interval(shares) if len(shares) else (None, None)
    return Agreement(
        pairs=len(pairs),
        people=len(by_person),
        share=float(shares.mean()) if len(shares) else None,
        low=low,
        high=high,
        by_kind={kind: float(np.mean(each)) for kind, each in sorted(by_kind.items())},
    )


def _interval(shares: Any) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(shares), size=(_DRAWS, len(shares)))
    low, high = np.quantile(shares[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def _ratios(lm: Any, pairs: Sequence[Pair], sides: Sequence[Side], file: AdapterFile) -> Tensor:
    """Log-ratio to the base model a scored frame, `[N]`."""
    pasts = [pair.context_PK[-_PAST_FRAMES:] for pair in pairs]
    columns = columns_batch([np.concatenate([p, s.tokens_TK]) for p, s in zip(pasts, sides, strict=True)])
    weights = torch.zeros(columns.shape[:2])
    for row, pair, past, side in zip(weights, pairs, pasts, sides, strict=True):
        row[len(past) : len(past) + len(side.tokens_TK)] = _credit(pair, side)
    with using(lm, file):
        policy = _logprobs(lm, columns)
    ratio = (policy - _logprobs(lm, columns)) * weights
    return ratio.sum(1) / weights.sum(1).clamp(min=1.0)


def _credit(pair: Pair, side: Side) -> Tensor:
    frames = len(side.tokens_TK)
    if not pair.kind.about_timing:
        return torch.ones(frames)
    return credit_window(torch.tensor([pair.event]), torch.tensor([frames]), frames, frame_rate=_FRAME_RATE_HZ)[0]


def _logprobs(lm: Any, columns: Tensor) -> Tensor:
    token = columns[..., 0].clamp(min=0)[..., None]
    return text_logits(lm, columns).log_softmax(-1).gather(-1, token)[..., 0]
