"""How good pictures are, and how near to others. Everything is computed in floating point: the difference of two uint8
pictures wraps, and a well-known family of published PSNR values is wrong because of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 11
"""Side of the window over which SSIM is taken, as in its paper (10.1109/TIP.2003.819861)."""


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


def relative_l2(found: Tensor, exact: Tensor) -> Tensor:
    """|found - exact| / |exact| of each picture (B, ...)."""
    found, exact = found.double().flatten(1), exact.double().flatten(1)
    return (found - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-12)


def psnr(found: Tensor, exact: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of each picture (B, C, H, W) in [0, 1]; infinite where equal."""
    from kornia.metrics import psnr as of_one

    return torch.stack([of_one(a, b, 1.0) for a, b in zip(_floats(found), _floats(exact), strict=True)])


def ssim(found: Tensor, exact: Tensor) -> Tensor:
    """Structural similarity of each picture (B, C, H, W) in [0, 1], with a Gaussian window of WINDOW pixels."""
    from kornia.metrics import ssim as of_pixels

    return of_pixels(_floats(found), _floats(exact), WINDOW).mean((1, 2, 3))


def _floats(pictures: Tensor) -> Tensor:
    if not pictures.is_floating_point():
        raise TypeError(f"pictures of {pictures.dtype} would wrap; give numbers from 0 to 1 in floating point")
    return pictures.float()
