"""Full: compute everything. The reference, and what calibration runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..sites import Action, Site, Step
from .base import CachePolicy


@dataclass(frozen=True)
class Full(CachePolicy):
    history: ClassVar[int] = 0

    def decide(self, step: Step, site: Site) -> Action:
        return Action.COMPUTE

    def describe(self) -> str:
        return "Full (no caching)"
