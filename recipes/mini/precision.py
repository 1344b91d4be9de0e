"""Which precision the stages multiply in while they train."""

from __future__ import annotations

import torch

__all__ = ["mixed"]

_WITHOUT = ("DEFAULT", "NO AVX", "AVX2")
"""Processors, as torch names them, on which bfloat16 is emulated: a linear layer takes five times as long in it."""


def mixed() -> torch.autocast:
    """Inside, bfloat16 where the processor multiplies it, else float32."""
    enabled = torch.backends.cpu.get_cpu_capability() not in _WITHOUT
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)
