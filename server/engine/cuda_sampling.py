"""Sampling state of all rows on a GPU, as tensors that a CUDA graph reads: `sampling` without a decision on the host.

It does what `server.engine.sampling.RowSampling` does, in the same order, through `kernels.sample`. Work that nobody
needs is done all the same, because a graph has no branches; it never changes a result.

Legend: B rows, V vocabulary, R remembered text tokens.
"""

import torch
from torch import Tensor

from kernels.sample import sample_topk
from server.engine.params import MAX_REPETITION_CONTEXT, SamplingParams

__all__ = ["KernelSampling"]

_EMPTY = -1
_NO_PADDING = -1


class _Stream:
    """Temperature, top-k and noise of one stream (text or audio), and room for what is chosen."""

    def __init__(self, rows: int, card: int, device: torch.device) -> None:
        self._card = card
        self.temperature_B = torch.ones(rows, device=device)
        self.top_k_B = torch.ones(rows, dtype=torch.int64, device=device)
        self.noise_scale_B = torch.zeros(rows, device=device)

    def set(self, row: int, *, temperature: float, top_k: int, greedy: bool) -> None:
        self.temperature_B[row] = 1.0 if greedy else temperature
        self.top_k_B[row] = min(top_k or self._card, self._card)
        self.noise_scale_B[row] = 0.0 if greedy else 1.0


class KernelSampling:
    """All rows' parameters, seeds and text. Tensors keep their addresses for good."""

    def __init__(
        self, *, rows: int, text_card: int, dep_q: int, card: int, padding_ids: tuple[int, ...], device: torch.device
    ) -> None:
        self._text, self._audio = _Stream(rows, text_card, device), _Stream(rows, card, device)
        self._pad_id = padding_ids[0]
        self._padding_ids = torch.tensor(padding_ids, device=device)
        self._seed_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._pad_mult_B = torch.zeros(rows, device=device)
        self._no_pad_mult_B = torch.zeros(rows, device=device)
        self._penalty_B1 = torch.ones(rows, 1, device=device)
        self._window_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._recent_BR = torch.full((rows, MAX_REPETITION_CONTEXT), _EMPTY, device=device)
        self._age_R = torch.arange(MAX_REPETITION_CONTEXT, device=device)
        self.token_BK = torch.zeros(1 + dep_q, rows, dtype=torch.int64, device=device).T
        """What was chosen last, int64 `[B, 1 + dep_q]`: text, then audio. Rows that did not move keep theirs."""
        self.logprob_B = torch.zeros(rows, device=device)
        """Of the text token, float32."""
        self._audio_logprob_B = torch.zeros(rows, device=device)

    def set(self, row: int, params: SamplingParams, seed: int) -> None:
        """Give `row` its parameters and seed (0 to 2**63 - 1), and forget the text it said."""
        self._text.set(row, temperature=params.text_temperature, top_k=params.text_topk, greedy=params.text_greedy)
        self._audio.set(row, temperature=params.audio_temperature, top_k=params.audio_topk, greedy=params.audio_greedy)
        self._seed_B[row] = seed
        self._pad_mult_B[row] = params.pad_mult
        self._penalty_B1[row] = params.repetition_penalty
        self._window_B1[row] = params.repetition_penalty_context
        self._recent_BR[row] = _EMPTY

    def pick_text(self, logits_BV: Tensor, frame_B: Tensor, moving_B: Tensor) -> Tensor:
        """Choose the text of moving rows from float32 logits. Returns the column of tokens, int64 `[B]`."""
        token_B = self.token_BK[:, 0]
        how = (self._text.temperature_B, self._text.top_k_B, self._text.noise_scale_B, self._pad_mult_B, self._seed_B)
        sample_topk(
            self._punished(logits_BV), logits_BV, *how, frame_B, moving_B, 0, self._pad_id, token_B, self.logprob_B
        )
        return token_B

    def pick_audio(self, codebook: int, logits_BV: Tensor, frame_B: Tensor, moving_B: Tensor) -> Tensor:
        """Choose audio codebook `codebook` (from 0) likewise."""
        token_B, which = self.token_BK[:, codebook + 1], codebook + 1
        audio = self._audio
        how = (audio.temperature_B, audio.top_k_B, audio.noise_scale_B, self._no_pad_mult_B, self._seed_B)
        sample_topk(logits_BV, logits_BV, *how, frame_B, moving_B, which, _NO_PADDING, token_B, self._audio_logprob_B)
        return token_B

    def remember(self, moving_B: Tensor) -> None:
        """Keep the text of rows that moved, newest first; padding is not text."""
        text_B1 = self.token_BK[:, :1]
        counts_B1 = moving_B[:, None] & ~torch.isin(text_B1, self._padding_ids)
        shifted = torch.cat([text_B1, self._recent_BR[:, :-1]], dim=1)
        self._recent_BR.copy_(torch.where(counts_B1, shifted, self._recent_BR))

    def _punished(self, logits_BV: Tensor) -> Tensor:
        rows, card = logits_BV.shape
        spare = torch.cat([logits_BV, logits_BV.new_zeros(rows, 1)], dim=1)  # tokens that do not count land behind
        counted = (self._recent_BR != _EMPTY) & (self._age_R < self._window_B1)
        place = torch.where(counted, self._recent_BR, card)
        was = spare.gather(1, place)
        spare.scatter_(1, place, torch.where(was > 0, was / self._penalty_B1, was * self._penalty_B1))
        return spare[:, :card].contiguous()
