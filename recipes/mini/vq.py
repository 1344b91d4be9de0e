"""Codebooks: k-means fits, and a straight-through quantiser whose exponential averages hold no graph.

The package's own `EuclideanCodebook.forward` keeps the autograd graph of every training step alive; here the
averages are updated under `no_grad`, and the result is written into the package's buffers at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["StraightThrough", "kmeans", "residual_kmeans", "write_codebook"]


def kmeans(points_ND: torch.Tensor, clusters: int, *, steps: int = 25, seed: int = 0) -> torch.Tensor:
    """Centroids float32 [clusters, D] of `points_ND`; empty clusters restart on random points."""
    generator = torch.Generator().manual_seed(seed)
    centroids = points_ND[torch.randperm(len(points_ND), generator=generator)[:clusters]].clone()
    for _ in range(steps):
        nearest = torch.cdist(points_ND, centroids).argmin(1)
        counts = torch.bincount(nearest, minlength=clusters)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points_ND)
        fresh = points_ND[torch.randint(len(points_ND), (clusters,), generator=generator)]
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], fresh)
    return centroids


def residual_kmeans(points_ND: torch.Tensor, levels: int, clusters: int) -> tuple[list[torch.Tensor], list[float]]:
    """Codebooks of a residual quantiser, fitted level by level, and the variance share left after each."""
    residual, total = points_ND.clone(), points_ND.var(0).sum()
    codebooks, left = [], []
    for level in range(levels):
        centroids = kmeans(residual, clusters, seed=level)
        residual = residual - centroids[torch.cdist(residual, centroids).argmin(1)]
        codebooks.append(centroids)
        left.append(float(residual.var(0).sum() / total))
    return codebooks, left


class StraightThrough(nn.Module):
    """Nearest-centroid quantiser with straight-through gradients and averaged centroids."""

    centroids: torch.Tensor
    usage: torch.Tensor
    sums: torch.Tensor

    def __init__(self, centroids_ND: torch.Tensor, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("centroids", centroids_ND.clone())
        self.register_buffer("usage", torch.ones(len(centroids_ND)))
        self.register_buffer("sums", centroids_ND.clone())

    def forward(self, x_BDT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantised [B, D, T] (straight-through), codes int64 [B, T], commitment loss."""
        flat = x_BDT.detach().transpose(1, 2).reshape(-1, x_BDT.shape[1])
        codes = torch.cdist(flat, self.centroids).argmin(1)
        if self.training:
            self._update(flat, codes)
        quantised = self.centroids[codes].view(x_BDT.shape[0], x_BDT.shape[2], -1).transpose(1, 2)
        commitment = (x_BDT - quantised).pow(2).mean()
        return x_BDT + (quantised - x_BDT).detach(), codes.view(x_BDT.shape[0], -1), commitment

    @torch.no_grad()
    def _update(self, flat: torch.Tensor, codes: torch.Tensor) -> None:
        counts = torch.bincount(codes, minlength=len(self.usage)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        expired = self.usage < 0.02 * self.usage.mean()
        if expired.any():
            picks = flat[torch.randint(len(flat), (int(expired.sum()),))]
            self.sums[expired], self.usage[expired] = picks * self.usage.mean(), self.usage.mean()
        self.centroids.copy_(self.sums / self.usage[:, None].clamp(min=1e-5))


@torch.no_grad()
def write_codebook(layer: Any, centroids_ND: torch.Tensor) -> None:
    """Put centroids into one of the package's `EuclideanCodebook` layers, marked as initialised."""
    book = layer._codebook
    book.embedding_sum.copy_(centroids_ND)
    book.cluster_usage.fill_(1.0)
    book._initialized.fill_(1.0)
    book.register_buffer("_embedding", None, persistent=False)
