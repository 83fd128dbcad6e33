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
    each = [_relative(a.double(), b.double()) for a, b in zip(found, exact, strict=True)]
    return torch.stack(each) if each else torch.zeros(0, dtype=torch.float64)


def _relative(found: Tensor, exact: Tensor) -> Tensor:
    """Of one at a time, as a video is as large as what memory is left."""
    return (found - exact).norm() / exact.norm().clamp_min(1e-12)


def psnr(found: Tensor, exact: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of each picture (B, C, H, W) in [0, 1]; infinite where equal."""
    from kornia.metrics import psnr as of_one

    return torch.stack([of_one(a, b, 1.0) for a, b in zip(_floats(found), _floats(exact), strict=True)])


def ssim(found: Tensor, exact: Tensor) -> Tensor:
    """Structural similarity of each picture (B, C, H, W) in [0, 1], with a Gaussian window of WINDOW pixels."""
    from kornia.metrics import ssim as of_pixels

    pairs = zip(_floats(found).split(1), _floats(exact).split(1), strict=True)
    return torch.cat([of_pixels(a, b, WINDOW).mean((1, 2, 3)) for a, b in pairs])


def _floats(pictures: Tensor) -> Tensor:
    if not pictures.is_floating_point():
        raise TypeError(f"pictures of {pictures.dtype} would wrap; give numbers from 0 to 1 in floating point")
    return pictures.float()
