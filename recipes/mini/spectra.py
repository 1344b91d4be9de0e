"""Spectra used as training targets: what a frame sounds like, and how far two sounds are apart."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from recipes.mini.codec import FRAME_SAMPLES, SAMPLE_RATE

__all__ = ["FrameSpectra", "mel_filters"]

_FLOOR = 1e-4


def mel_filters(bins: int, bands: int, *, high_hz: float = SAMPLE_RATE / 2) -> torch.Tensor:
    """Triangular filters float32 [bands, bins] on the HTK mel scale, over linear bins up to 8 kHz."""
    top = 2595 * math.log10(1 + high_hz / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, bins)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


class FrameSpectra(nn.Module):
    """One target vector a frame: 8 mel spectra (10 ms apart) and 4 low-frequency ones that show the pitch."""

    filters: torch.Tensor

    def __init__(self, bands: int = 64, low_bins: int = 48) -> None:
        super().__init__()
        self.register_buffer("filters", mel_filters(257, bands))
        self.low_bins = low_bins
        self.size = 8 * bands + 4 * low_bins

    @torch.no_grad()
    def forward(self, sound_BS: torch.Tensor) -> torch.Tensor:
        """float32 [B, S] -> [B, T, size]; every spectrum ends within its frame, so nothing lies in the future."""
        frames = sound_BS.shape[1] // FRAME_SAMPLES
        mel = self.filters @ _magnitude(sound_BS, 512, 160)
        low = _magnitude(sound_BS, 1024, 320)[:, : self.low_bins]
        return torch.cat([_by_frame(mel, frames, 8), _by_frame(low, frames, 4)], -1)


def _magnitude(sound: torch.Tensor, size: int, hop: int) -> torch.Tensor:
    padded = F.pad(sound, (size - hop, 0))
    window = torch.hann_window(size)
    return torch.stft(padded, size, hop, window=window, center=False, return_complex=True).abs()


def _by_frame(spectrum: torch.Tensor, frames: int, per_frame: int) -> torch.Tensor:
    logged = torch.log(spectrum[:, :, : frames * per_frame] + _FLOOR * 100) / 2.0 + 1.0
    return logged.transpose(1, 2).reshape(len(spectrum), frames, -1)
