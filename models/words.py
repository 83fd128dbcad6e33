"""The words and the pixels of the demo models that read prompts: a text encoder and a VAE without any weights."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError, shown

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = (
    "circle", "ring", "half-disc", "crescent", "triangle", "square",
    "diamond", "star", "plus", "cross", "heart", "arrow",
)  # fmt: skip
VOCABULARY = ("", "on", *COLOURS, *SHAPES)
"""The empty word pads. New words go to the end: a word's place in this list is its embedding."""

LENGTH, WIDTH = 4, 64


def embeddings() -> Tensor:
    """One fixed random vector (WIDTH,) per word of the vocabulary; the same on every machine."""
    return torch.randn(len(VOCABULARY), WIDTH, generator=torch.Generator().manual_seed(0))


def tokens(prompt: str) -> list[int]:
    """ "a red star on blue" -> places in the vocabulary, padded to LENGTH. Articles are dropped.

    Raises SettingError, naming the word, on one that is not in the vocabulary, and on a prompt that is too long.
    """
    words = [
        w for w in re.split(r"[\s,]+", prompt.lower().replace("half disc", "half-disc")) if w not in ("", "a", "an")
    ]
    if unknown := [w for w in words if w not in VOCABULARY]:
        raise SettingError(
            f"the demo model does not know the word {shown(unknown[0])}; it knows the colours {', '.join(COLOURS)}, "
            f"the shapes {', '.join(SHAPES)}, and 'on' for the ground, as in 'red star on blue'"
        )
    if len(words) > LENGTH:
        raise SettingError(
            f"the demo model reads {LENGTH} words, as in 'red star on blue'; this prompt has {len(words)}"
        )
    return [VOCABULARY.index(w) for w in words] + [0] * (LENGTH - len(words))


def encode(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> (context (B, LENGTH, WIDTH), pooled (B, WIDTH): the mean over the words)."""
    context = embeddings()[torch.tensor([tokens(p) for p in prompts])]
    return context, context.mean(dim=1)


SHIFT, SCALE = 0.1159, 0.3611
"""Flux's latent format: what samplers see is (latent - SHIFT) * SCALE."""


def fold(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> (B, 16, H / 2, W / 2) as the network sees them; four channels stay empty."""
    return F.pad(F.pixel_unshuffle(pictures, 2), (0, 0, 0, 0, 0, 4))


def unfold(folded: Tensor) -> Tensor:
    """The pictures of `fold`."""
    return F.pixel_shuffle(folded[:, :12], 2)


class FoldedPixels:
    """A VAE for ComfyUI's nodes without weights: latents are pixels, folded 2 x 2 into channels."""

    def decode(self, samples: Tensor) -> Tensor:
        """Latents (B, 16, h, w) -> IMAGE (B, 2 h, 2 w, 3) in [0, 1]."""
        pictures = unfold((samples.float() - SHIFT) * SCALE)
        return ((pictures + 1) / 2).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: Tensor) -> Tensor:
        """IMAGE (B, H, W, 3) in [0, 1] -> latents; the last row or column of odd sides is left out, as ComfyUI's VAE does."""
        height, width = (side // 2 * 2 for side in pixels.shape[1:3])
        return fold(pixels[:, :height, :width, :3].movedim(-1, 1) * 2 - 1) / SCALE + SHIFT

    def spacial_compression_encode(self) -> int:
        return 2
