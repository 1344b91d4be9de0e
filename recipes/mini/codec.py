"""The embedded model's codec: a small Mimi in the `moshi` package's own classes.

Owns its configuration and the two bypasses training needs (latent before the codebooks, sound after them).
16 kHz inside, 12.5 frames a second, one semantic and five acoustic codebooks of 512; about 99 M
multiply-adds per second of sound, encoder and decoder together.

Shapes: B batch, S samples, T frames (S = 1280 T), C latent channels, D codebook dimension, K codebooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from moshi.models import loaders
from moshi.models.compression import MimiModel
from torch import nn

__all__ = [
    "CONFIG",
    "FRAME_SAMPLES",
    "LATENT",
    "N_Q",
    "SAMPLE_RATE",
    "branches",
    "build",
    "load_weights",
    "scale_to_unit",
    "synthesise",
]

SAMPLE_RATE = 16_000
FRAME_SAMPLES = 1280
LATENT = 128
N_Q = 6
BINS = 512
CODE_DIMENSION = 64

CONFIG: dict[str, Any] = {
    "sample_rate": SAMPLE_RATE,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": LATENT,
        "causal": True,
        "n_filters": 16,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 4,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [2, 4, 8, 10],
        "true_skip": True,
    },
    "quantizer": {
        "dimension": CODE_DIMENSION,
        "n_q": N_Q,
        "bins": BINS,
        "input_dimension": LATENT,
        "output_dimension": LATENT,
    },
    "transformer": {
        "d_model": LATENT,
        "num_heads": 4,
        "num_layers": 2,
        "causal": True,
        "layer_scale": 0.1,
        "context": 50,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 256,
        "input_dimension": LATENT,
        "output_dimensions": [LATENT],
    },
}


def build() -> MimiModel:
    """A codec with fresh weights, all codebooks active."""
    return loaders.get_mimi(None, CONFIG, num_codebooks=N_Q)


def load_weights(mimi: MimiModel, path: Path) -> MimiModel:
    """Load a `torch.save`d training state of our own making (never a downloaded file)."""
    mimi.load_state_dict(torch.load(path, weights_only=True))
    return mimi


def latent(mimi: MimiModel, sound_BS: torch.Tensor) -> torch.Tensor:
    """float32 [B, C, T]: what the codebooks see, with gradients."""
    x = mimi.encoder(sound_BS[:, None])
    (x,) = mimi.encoder_transformer(x)
    return mimi._to_framerate(x)


def branches(mimi: MimiModel, sound_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Semantic and acoustic codebook inputs, each float32 [B, D, T], with gradients."""
    x = latent(mimi, sound_BS)
    return mimi.quantizer.rvq_first.input_proj(x), mimi.quantizer.rvq_rest.input_proj(x)


def synthesise(mimi: MimiModel, semantic_BDT: torch.Tensor, acoustic_BDT: torch.Tensor) -> torch.Tensor:
    """Sound float32 [B, S] from (quantised) codebook vectors, with gradients."""
    x = mimi.quantizer.rvq_first.output_proj(semantic_BDT) + mimi.quantizer.rvq_rest.output_proj(acoustic_BDT)
    x = mimi._to_encoder_framerate(x)
    (x,) = mimi.decoder_transformer(x)
    return mimi.decoder(x)[:, 0]


@torch.no_grad()
def scale_to_unit(mimi: MimiModel, sound_BS: torch.Tensor, *, decoder: bool = False) -> None:
    """Data-dependent start (LSUV, Mishkin & Matas 2016): every convolution gives unit variance on real speech.

    The classes' default initialisation shrinks speech at -23 dBFS two-hundredfold from input to latent, and
    biases drown what is left.
    """

    def rescale(layer: nn.Module, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
        assert isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
        if layer.bias is not None:
            out = out - layer.bias.view(1, -1, 1)
            layer.bias.zero_()
        spread = out.std(dim=(0, 2)).mean().clamp(min=1e-5)
        layer.weight.div_(spread)
        return out / spread

    parts = (mimi.decoder, mimi.upsample) if decoder else (mimi.encoder, mimi.downsample)
    kinds = (nn.Conv1d, nn.ConvTranspose1d)
    layers = [m for part in parts for m in part.modules() if isinstance(m, kinds)]
    if not decoder:
        layers += [mimi.quantizer.rvq_first.input_proj, mimi.quantizer.rvq_rest.input_proj]
    hooks = [layer.register_forward_hook(rescale) for layer in layers]
    semantic, acoustic = branches(mimi, sound_BS)
    if decoder:
        synthesise(mimi, semantic, acoustic)
    for hook in hooks:
        hook.remove()


def count_macs(module: nn.Module) -> list[tuple[str, int]]:
    """Multiply-adds of the convolutions and linears in one forward pass, filled in while hooks are on."""
    counted: list[tuple[str, int]] = []

    def hook(name: str) -> Any:
        def count(layer: nn.Module, _inputs: Any, out: torch.Tensor) -> None:
            if isinstance(layer, nn.ConvTranspose1d):
                counted.append((name, _inputs[0].shape[-1] * layer.weight.numel()))
            elif isinstance(layer, nn.Conv1d):
                counted.append((name, out.shape[-1] * layer.weight.numel()))
            elif isinstance(layer, nn.Linear):
                counted.append((name, out.numel() // out.shape[-1] * layer.weight.numel()))

        return count

    for name, layer in module.named_modules():
        layer.register_forward_hook(hook(name))
    return counted
