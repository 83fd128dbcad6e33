"""How good a set of pictures is, judged in features."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64."""
    features = features.double()
    return features.mean(0), features.T.cov()


def frechet(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Frechet distance of two Gaussians, |m - n|^2 + tr(S + T - 2 (S T)^1/2) (arXiv 1706.08500); not its square root."""
    (m, s), (n, t) = one, other
    values, vectors = torch.linalg.eigh(s)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T  # (S T)^1/2 has the trace of (root T root)^1/2
    both = torch.linalg.eigvalsh(root @ t @ root).clamp_min(0).sqrt().sum()
    return ((m - n).square().sum() + s.trace() + t.trace() - 2 * both).item()


def precision_recall(found: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991): the share of each set (N, D) within the other's k-NN balls."""
    return within(found, real, k), within(real, found, k)


def within(points: Tensor, others: Tensor, k: int, rows: int = 1024) -> float:
    """Share of points (N, D) no farther from one of the others (M, D) than that one's own k-th nearest neighbour is."""
    points, others, k = points.double(), others.double(), min(k, len(others) - 1)
    radii = torch.cat([torch.cdist(part, others).kthvalue(k + 1, dim=1).values for part in others.split(rows)])
    return (
        torch.cat([(torch.cdist(part, others) <= radii).any(1) for part in points.split(rows)]).double().mean().item()
    )
