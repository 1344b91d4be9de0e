"""The embedded model's language model: Moshi's classes, 9.5 M parameters.

It costs 9.7 M multiply-adds a frame with a full cache.
Owns its configuration and the training-time forward pass, which runs the depth transformer on a sample of the
frames. B batch, T frames, K codebooks of one side, D model dimension.
"""

from __future__ import annotations

import os

os.environ.setdefault("NO_TORCH_COMPILE", "1")

from dataclasses import dataclass
from typing import Any

import torch
from moshi.models import loaders
from moshi.models.lm import LMModel
from moshi.models.lm_utils import _delay_sequence

from recipes.mini.codec import BINS, N_Q
from recipes.mini.text import PADDING, VOCABULARY

__all__ = ["CONFIG", "Teacher", "build", "teacher"]

CONFIG: dict[str, Any] = {
    "dim": 256,
    "text_card": VOCABULARY,
    "existing_text_padding_id": PADDING,
    "n_q": 2 * N_Q,
    "dep_q": N_Q,
    "card": BINS,
    "num_heads": 8,
    "num_layers": 6,
    "hidden_scale": 4,
    "causal": True,
    "layer_scale": None,
    "context": 750,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 128,
    "depformer_dim_feedforward": 384,
    "depformer_num_heads": 4,
    "depformer_num_layers": 2,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": N_Q,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0] + 2 * ([0] + [1] * (N_Q - 1)),
}


def build() -> LMModel:
    """A language model with fresh weights, float32."""
    return loaders.get_moshi_lm(None, CONFIG, dtype=torch.float32)


@dataclass
class Teacher:
    """Teacher-forced outputs. text_BTV, hidden_BTD; audio_NKV and its targets on the sampled frames."""

    text_BTV: torch.Tensor
    text_target_BT: torch.Tensor
    hidden_BTD: torch.Tensor
    audio_NKV: torch.Tensor
    audio_target_NK: torch.Tensor


def teacher(lm: LMModel, codes_BKT: torch.Tensor, inputs_BKT: torch.Tensor, frames_N: torch.Tensor) -> Teacher:
    """Forward pass with `inputs_BKT` (a corrupted copy of `codes_BKT`) seen and `codes_BKT` predicted.

    frames_N: int64 indices into the flattened [B T] on which the depth transformer runs.
    """
    initial = lm._get_initial_token().expand(len(codes_BKT), -1, -1)
    targets = _delay_sequence(lm.delays, codes_BKT, initial)
    seen = torch.cat([initial, _delay_sequence(lm.delays, inputs_BKT, initial)[:, :, :-1]], 2)
    hidden, text_logits = lm.forward_text(seen)
    flat_hidden = hidden.flatten(0, 1)[frames_N][None]
    flat_targets = targets.transpose(1, 2).flatten(0, 1)[frames_N].T[None]
    audio = lm.forward_depformer_training(flat_targets, flat_hidden)[0].transpose(0, 1)
    return Teacher(text_logits[:, 0], targets[:, 0], hidden, audio, flat_targets[0, 1 : 1 + lm.dep_q].T)
