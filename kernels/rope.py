"""RoPE as the ring keeps it: angles once a step for all layers, and pairs apart instead of side by side.

Upstream's keys are interleaved, real and imaginary parts of a pair next to each other. Here the real parts come first
and then the imaginary ones. A score is a sum over both, so it does not change.

Legend: B rows, T new positions, H heads, D width of a head, d pairs of it.
"""

import math

import torch
from torch import Tensor

__all__ = ["rope_table", "rotate", "store_order"]


def rope_table(offset_B: Tensor, times: int, width: int, max_period: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the next positions, each float32 `[B, T, D / 2]`, as upstream's `apply_rope` rounds them.

    `offset_B` is int64. Source: Su et al., *RoFormer*, arXiv 2104.09864, equation 34.
    """
    place = torch.arange(width // 2, device=offset_B.device, dtype=torch.float32)
    frequency = torch.exp(place * (-math.log(max_period) * 2 / width))
    position_BT = offset_B.float()[:, None] + torch.arange(times, device=offset_B.device, dtype=torch.float32)
    angle = frequency * position_BT[..., None]
    return torch.cos(angle), torch.sin(angle)


def rotate(x_BTHD: Tensor, cosine_BTd: Tensor, sine_BTd: Tensor) -> Tensor:
    """RoPE of interleaved pairs, float32 and de-interleaved, `[B, T, H, D]`."""
    real, imaginary = x_BTHD[..., 0::2].float(), x_BTHD[..., 1::2].float()
    cosine, sine = cosine_BTd[:, :, None], sine_BTd[:, :, None]
    return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)


def store_order(width: int) -> Tensor:
    """Where number i of a stored key comes from in an interleaved one, int64 `[D]`."""
    return torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
