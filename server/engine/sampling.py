"""From logits to tokens, every row by its own parameters and its own noise.

This file owns the per-row tensors of `SamplingParams` and the order in which they act:

1. the log-probability of every token, from the raw logits (this is what the journal keeps);
2. text only: repetition penalty on the raw logits (Keskar et al., CTRL, arXiv 1909.05858, section 4.1);
3. division by the temperature (not in greedy rows);
4. text only: `pad_mult` added to the padding token;
5. everything below the row's k-th largest value removed;
6. argmax after adding Gumbel noise, which samples from the softmax of what is left (not in greedy rows).

No row reads another row's numbers. Work that no open row needs is skipped, which never changes a result.

Legend: B rows, V vocabulary, R remembered text tokens.
"""

import torch
from torch import Tensor

from server.engine.noise import NoiseSource
from server.engine.params import MAX_REPETITION_CONTEXT, SamplingParams

__all__ = ["RowSampling"]

_EMPTY = -1


class _Stream:
    """Temperature and top-k of one stream (text or audio) for every row."""

    def __init__(self, rows: int, card: int, device: torch.device) -> None:
        self._card = card
        self._temperature_B1 = torch.ones(rows, 1, device=device)
        self._noise_scale_B1 = torch.zeros(rows, 1, device=device)
        self._top_k_B1 = torch.ones(rows, 1, dtype=torch.int64, device=device)
        self._top_k = [1] * rows  # the same on the host
        self._greedy = [True] * rows

    def set(self, row: int, *, temperature: float, top_k: int, greedy: bool) -> None:
        kept = min(top_k or self._card, self._card)
        self._temperature_B1[row] = 1.0 if greedy else temperature
        self._noise_scale_B1[row] = 0.0 if greedy else 1.0
        self._greedy[row] = greedy
        self._top_k[row] = 1 if greedy else kept
        self._top_k_B1[row] = self._top_k[row]

    @property
    def all_greedy(self) -> bool:
        return all(self._greedy)

    def warm(self, logits_BV: Tensor) -> Tensor:
        return logits_BV if self.all_greedy else logits_BV / self._temperature_B1

    def pick(self, warmed_BV: Tensor, noise_BV: Tensor | None) -> Tensor:
        """Steps 5 and 6; ties at the k-th value stay in, so that the result does not depend on their order."""
        if noise_BV is None or self.all_greedy:
            return warmed_BV.argmax(-1)
        if min(self._top_k) < self._card:
            threshold_B1 = warmed_BV.topk(max(self._top_k)).values.gather(1, self._top_k_B1 - 1)
            warmed_BV = warmed_BV.masked_fill(warmed_BV < threshold_B1, -torch.inf)
        return (warmed_BV + noise_BV * self._noise_scale_B1).argmax(-1)


class RowSampling:
    """Sampling state of all rows: parameters, seeds, and the text tokens that repetition is measured against."""

    def __init__(
        self, *, rows: int, text_card: int, dep_q: int, card: int, padding_ids: tuple[int, ...], device: torch.device
    ) -> None:
        self._noise = NoiseSource(text_card=text_card, dep_q=dep_q, card=card, device=device)
        self._text = _Stream(rows, text_card, device)
        self._audio = _Stream(rows, card, device)
        self._text_card, self._device = text_card, device
        self._pad_id, self._padding_ids = padding_ids[0], torch.tensor(padding_ids, device=device)
        self._seed_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._pad_mult_B = torch.zeros(rows, device=device)
        self._penalty_B1 = torch.ones(rows, 1, device=device)
        self._window_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._recent_BR = torch.full((rows, MAX_REPETITION_CONTEXT), _EMPTY, device=device)
        self._punished = [False] * rows
        self._noise_text: Tensor | None = None
        self._noise_audio: Tensor | None = None

    def set(self, row: int, params: SamplingParams, seed: int) -> None:
        """Give `row` its parameters and seed (0 to 2**63 - 1), and forget the text it said."""
        self._text.set(row, temperature=params.text_temperature, top_k=params.text_topk, greedy=params.text_greedy)
        self._audio.set(row, temperature=params.audio_temperature, top_k=params.audio_topk, greedy=params.audio_greedy)
        self._seed_B[row] = seed
        self._pad_mult_B[row] = params.pad_mult
        self._penalty_B1[row] = params.repetition_penalty
        self._window_B1[row] = params.repetition_penalty_context
        self._recent_BR[row] = _EMPTY
        self._punished[row] = params.repetition_penalty != 1.0 and params.repetition_penalty_context > 0

    def clear(self, row: int) -> None:
        """Give `row` back: a closed row asks for no noise and no penalty."""
        self.set(row, SamplingParams(use_sampling=False), seed=0)

    def begin_frame(self, step_B: Tensor) -> None:
        """Draw the noise of the rows' steps (int64 `[B]`), unless every row is greedy."""
        if self._text.all_greedy and self._audio.all_greedy:
            self._noise_text = self._noise_audio = None
        else:
            self._noise_text, self._noise_audio = self._noise.gumbel(self._seed_B, step_B)

    def pick_text(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Text tokens int64 `[B]` and their log-probabilities float32 `[B]`, from float32 logits."""
        warmed_BV = self._text.warm(self._punish(logits_BV)).clone()
        warmed_BV[:, self._pad_id] += self._pad_mult_B
        token_B = self._text.pick(warmed_BV, self._noise_text)
        logprob_BV = torch.log_softmax(logits_BV, dim=-1)
        return token_B, logprob_BV.gather(1, token_B[:, None])[:, 0]

    def pick_audio(self, codebook: int, logits_BV: Tensor) -> Tensor:
        """Tokens int64 `[B]` of audio codebook `codebook` (from 0), from float32 logits."""
        noise = None if self._noise_audio is None else self._noise_audio[:, codebook]
        return self._audio.pick(self._audio.warm(logits_BV), noise)

    def remember(self, text_B: Tensor, moving_B: Tensor) -> None:
        """Keep the text of rows that moved, newest first; padding is not text."""
        if not any(self._punished):
            return
        counts_B = moving_B & ~torch.isin(text_B, self._padding_ids)
        shifted = torch.cat([text_B[:, None], self._recent_BR[:, :-1]], dim=1)
        self._recent_BR = torch.where(counts_B[:, None], shifted, self._recent_BR)

    def _punish(self, logits_BV: Tensor) -> Tensor:
        if not any(self._punished):
            return logits_BV
        age_R = torch.arange(MAX_REPETITION_CONTEXT, device=self._device)
        counted = (self._recent_BR != _EMPTY) & (age_R < self._window_B1)
        seen = torch.zeros(len(logits_BV), self._text_card + 1, dtype=torch.bool, device=self._device)
        seen.scatter_(1, torch.where(counted, self._recent_BR, self._text_card), value=True)
        punished = torch.where(logits_BV > 0, logits_BV / self._penalty_B1, logits_BV * self._penalty_B1)
        return torch.where(seen[:, : self._text_card], punished, logits_BV)
