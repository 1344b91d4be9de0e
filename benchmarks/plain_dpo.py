"""The peer of the learner: a plain DPO step on upstream's modules, as one writes it first.

Both sides are whole sequences, past included, padded to one length; the reference is a second, frozen model that reads
both again in every step; adapters are upstream's; logits of the whole vocabulary are made for every frame and one is
picked. Nothing here is ours but the pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moshi.models.lm_utils import _delay_sequence
from moshi.modules.lora import replace_all_linear_with_lora
from moshi.utils.compile import no_compile
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from online_align.records import Pair, Side
from server.engine.checkpoint import load_checkpoint

__all__ = ["PlainDpo"]


class PlainDpo:
    """Upstream's language model with upstream's adapters on its temporal transformer, and its frozen copy."""

    def __init__(self, checkpoint: Path, *, rank: int, scaling: float, beta: float) -> None:
        cpu = torch.device("cpu")
        self._beta = beta
        self._reference = load_checkpoint(checkpoint, device=cpu, dtype=torch.float32).lm.requires_grad_(False)
        self._lm = load_checkpoint(checkpoint, device=cpu, dtype=torch.float32).lm.requires_grad_(False)
        replace_all_linear_with_lora(self._lm.transformer, rank, scaling)
        self._lm.train()
        self._learned = [part for name, part in self._lm.named_parameters() if "lora_" in name]
        with torch.no_grad():
            for name, part in self._lm.named_parameters():
                if "lora_B" in name:
                    part.zero_()
        for part in self._lm.parameters():
            part.requires_grad_(any(part is each for each in self._learned))
        self._optimiser = torch.optim.AdamW(self._learned, lr=1e-4, weight_decay=0.0)

    def step(self, pairs: Sequence[Pair], at_once: int) -> float:
        """One step of the optimiser over `pairs`, `at_once` of them at a time. Returns the loss."""
        self._optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, len(pairs), at_once):
            loss = self.loss(pairs[start : start + at_once]).sum() / len(pairs)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._learned, 1.0)
        self._optimiser.step()
        return total

    def loss(self, pairs: Sequence[Pair]) -> Tensor:
        """DPO of each pair, float32 `[B]`."""
        codes, mask = _padded(pairs)
        with no_compile():
            with torch.no_grad():
                reference = (_text_logp(self._reference, codes) * mask).sum(1)
            ours = (_text_logp(self._lm, codes) * mask).sum(1)
        chosen, rejected = (ours - reference).chunk(2)
        return -logsigmoid(self._beta * (chosen - rejected))

    def ratios(self, pairs: Sequence[Pair]) -> Tensor:
        """Log-probability of each chosen, then each rejected reply, `[2 B]`: to compare with ours."""
        codes, mask = _padded(pairs)
        with torch.no_grad(), no_compile():
            return (_text_logp(self._lm, codes) * mask).sum(1)


def _text_logp(lm: Any, codes_BKT: Tensor) -> Tensor:
    """Log-probability of every frame's text, `[B, T]`, through all logits."""
    initial = lm._get_initial_token().expand(len(codes_BKT), -1, -1)  # noqa: SLF001 - as `LMModel.forward` does
    read = torch.cat([initial, _delay_sequence(lm.delays, codes_BKT, initial)], dim=2)[:, :, :-1]
    _, logits_B1TV = lm.forward_text(read)
    logp_BTV = torch.log_softmax(logits_B1TV[:, 0].float(), dim=-1)
    return logp_BTV.gather(2, codes_BKT[:, 0, :, None])[..., 0]


def _padded(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """All chosen, then all rejected sequences, `[2 B, K, T]`, and 1 for the frames of their sides."""
    rows = [(pair, pair.chosen) for pair in pairs] + [(pair, pair.rejected) for pair in pairs]
    longest = max(len(pair.context_PK) + len(side.tokens_TK) for pair, side in rows)
    codes, masks = zip(*(_one(pair, side, longest) for pair, side in rows), strict=True)
    return torch.stack(codes), torch.stack(masks)


def _one(pair: Pair, side: Side, longest: int) -> tuple[Tensor, Tensor]:
    columns = torch.from_numpy(np.concatenate([pair.context_PK, side.tokens_TK]).astype(np.int64)).T
    mask = torch.zeros(longest)
    mask[len(pair.context_PK) : columns.shape[1]] = 1.0
    return pad(columns, (0, longest - columns.shape[1])), mask
