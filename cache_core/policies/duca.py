"""DuCa: Accelerating Diffusion Transformers with Dual Feature Caching (arXiv 2412.18911)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..sites import STACK, Action, Site, Step
from .toca import DIT, FLUX, PIXART, Preset, ToCa

PRESETS = {
    "dit": replace(DIT, ratio=0.05, bonus=0.8),
    "pixart": replace(PIXART, ratio=0.75, drift=(1.0, 0.0)),
    "flux": replace(FLUX, interval=5, staleness=0.0, odd="a"),
    "hunyuan video": replace(FLUX, interval=5, staleness=0.0, warmup=1, video=True),
}
"""From the authors' commands and code; of the last two, the share per layer is that of their ToCa for Flux.

A comment in their Flux code reuses single branches in the aggressive steps of the first half; here all blocks are skipped in all.
Such a step of that code goes on from what the last block was given, here from what it gave.
"""


@dataclass(frozen=True)
class DuCa(ToCa):
    """Alternates aggressive steps, which skip all blocks, with the conservative steps of ToCa, which mend the error.

    An aggressive step keeps the hidden state after the last block and runs the final layer at the current time; where
    blocks cannot be skipped it reuses their branches. Which of the two comes first is the preset's. Tokens are chosen
    at random by default, as the later version of the paper finds no worse; "small values" is the V-caching of the
    earlier one (its sign is disputed, hence "large values"). Fused attention stays in use with all three.

    faithful: the first block of an "F0+a" step, which the published code computes for nothing but the cache, is skipped too.
    """

    stack: ClassVar[bool] = True
    presets: ClassVar[dict[str, Preset]] = PRESETS
    aggressive: ClassVar[bool] = True

    def decide(self, step: Step, site: Site) -> Action:
        if site == STACK:
            return Action.REUSE if self.kind(step).endswith("a") else Action.COMPUTE
        return super().decide(step, site)
