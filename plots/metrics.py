"""How near pictures are to others. Everything is computed in floating point: the difference of two uint8 pictures wraps, and
a well-known family of published PSNR values is wrong because of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 11
"""Side of the window over which SSIM is taken, as in its paper (10.1109/TIP.2003.819861)."""


def relative_l2(found: Tensor, exact: Tensor) -> Tensor:
    """|found - exact| / |exact| of each picture (B, ...)."""
    found, exact = found.double().flatten(1), exact.double().flatten(1)
    return (found - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-12)


def psnr(found: Tensor, exact: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of each picture (B, C, H, W) in [0, 1]; infinite where equal."""
    from kornia.metrics import psnr as of_one

    return torch.vmap(lambda a, b: of_one(a, b, 1.0))(_floats(found), _floats(exact))


def ssim(found: Tensor, exact: Tensor) -> Tensor:
    """Structural similarity of each picture (B, C, H, W) in [0, 1], with a Gaussian window of WINDOW pixels."""
    from kornia.metrics import ssim as of_pixels

    return of_pixels(_floats(found), _floats(exact), WINDOW).mean((1, 2, 3))


def _floats(pictures: Tensor) -> Tensor:
    if not pictures.is_floating_point():
        raise TypeError(f"pictures of {pictures.dtype} would wrap; give numbers from 0 to 1 in floating point")
    return pictures.float()
