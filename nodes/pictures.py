"""Figures as the host's images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def as_image(figure: Figure) -> torch.Tensor:
    """IMAGE (1, H, W, 3) of a figure; matplotlib is loaded when the first one is drawn."""
    from ..plots.style import pixels

    return torch.from_numpy(pixels(figure))[None]
