"""Pictures of the procedural shapes with prompts such as "red star on blue", for the demo models that read words."""

from __future__ import annotations

import shapes
import torch
from torch import Tensor

STARTS = (-0.04, 0.04, 0.12, 0.2, 0.44, 0.55, 0.7, 0.8, 0.96)
"""Colour i of the vocabulary is any hue from STARTS[i] to STARTS[i + 1]."""


def colour_name(hue: float) -> str:
    from priorcache.models.words import COLOURS

    hue = hue - 1 if hue >= STARTS[-1] else hue
    return COLOURS[sum(hue >= s for s in STARTS[1:-1])]


def captioned(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Random pictures and their prompts; words are left out at random, one in ten says nothing."""
    from priorcache.models.words import SHAPES

    labels = torch.randint(len(SHAPES), (count,), generator=generator)
    pictures, hues, grounds = shapes.render(labels, size, generator)
    draws = torch.rand(count, 4, generator=generator).tolist()
    prompts = []
    for label, hue, ground, (all_, shape, own, other) in zip(
        labels.tolist(), hues.tolist(), grounds.tolist(), draws, strict=True
    ):
        words = [colour_name(hue)] * (own < 0.85) + [SHAPES[label]] * (shape < 0.95)
        words += ["on", colour_name(ground)] * (other < 0.7)
        prompts.append(" ".join(words) if all_ < 0.9 else "")
    return pictures, prompts
