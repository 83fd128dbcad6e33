"""In what space pictures are compared: features, and what real ones look like in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .machine import device
from .metrics import moments

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_SEED = 2_000_000


class Judge(NamedTuple):
    """The space that pictures are compared in. features: of pictures (B, 3, H, W) in [0, 1]; named: the class seen in them.

    Both give tensors on the CPU, wherever they compute.
    """

    features: Callable[[Tensor], Tensor] | None
    named: Callable[[Tensor], Tensor] | None
    moments: tuple[Tensor, Tensor] | None
    real: Tensor | None = None  # features (N, D), where the reference has them


def demo_judge(count: int) -> Judge:
    """The penultimate layer of the classifier of the demo shapes, and `count` pictures drawn afresh."""
    sys.path.insert(0, str(ROOT / "demo"))
    import classifier
    import shapes

    model = classifier.load().to(device())
    labels = torch.arange(count) % len(shapes.CLASSES)
    generator = torch.Generator().manual_seed(REFERENCE_SEED)
    drawn = [shapes.render(part, 32, generator)[0] for part in labels.split(500)]

    def features(pictures: Tensor) -> Tensor:
        return model.features(pictures.to(device()) * 2 - 1).cpu()

    def named(pictures: Tensor) -> Tensor:
        return model(pictures.to(device()) * 2 - 1).argmax(1).cpu()

    real = torch.cat([features(part) for part in drawn])
    return Judge(features, named, moments(real), real)


def file_judge(reference: Path | None) -> Judge:
    """Somebody's own statistics; features come from files."""
    if reference is None:
        return Judge(None, None, None)
    with np.load(reference, allow_pickle=False) as file:
        if "features" in file:
            real = torch.from_numpy(file["features"])
            return Judge(None, None, moments(real), real)
        if {"mu", "sigma"} <= set(file):
            return Judge(None, None, (torch.from_numpy(file["mu"]).double(), torch.from_numpy(file["sigma"]).double()))
        raise SystemExit(f"{reference.name} holds {', '.join(file)}; features, or mu and sigma, are needed")
