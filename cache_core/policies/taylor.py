"""Taylor: From Reusing to Forecasting, Accelerating Diffusion Models with TaylorSeers (arXiv 2503.06923)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import SettingError
from ..knobs import Choice, Knob
from ..sites import Feature, Schedule, Site, Step
from .correction import Correction


@dataclass(frozen=True)
class Taylor(Correction):
    """Extrapolate the last computed outputs f0, f1, f2 of a branch, computed at evaluations t0 > t1 > t2, to t:

        f0 + x d                                     order 1, d = (f0 - f1) / (t0 - t1), x = t - t0
           + x x / 2 * (d - d') / (t0 - t1)          order 2, d' = (f1 - f2) / (t1 - t2)
           + x (x + t0 - t1) * (d - d') / (t0 - t2)  order 2, exact

    The first second-order term is TaylorSeer's: it divides each difference by the latest distance and takes it for a
    derivative at t0, so that it misses a quadratic; the second one, Newton's, does not. Distances are counted in
    evaluations. Until enough outputs were computed the order is lower, and 0 is plain reuse: so it stays where a base computes
    some tokens only (ToCa, DuCa), whose outputs count as not computed and take the place of those that are. The level is the base's:
    branches as in the paper, or the whole network. Which steps are computed is the base's affair: the published code begins
    with a few in a row, which FORA does where its steps are listed; after three of them it is still at order 1 on Flux, where ours is at 2.
    """

    order: int = 1
    exact: bool = False
    changes: ClassVar[str] = "forecast"

    def __post_init__(self):
        super().__post_init__()
        if self.order not in (1, 2):
            raise SettingError(f"Taylor: order is {self.order}; 1 is linear, 2 quadratic")

    @property
    def features(self) -> int:
        return self.order + 1

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        known = [feature for feature in past if feature.computed][: self.features]
        if len(known) < 2:
            return past[0].value
        (f0, t0), (f1, t1), *older = [(feature.value, feature.step.index) for feature in known]
        x, distance = step.index - t0, t0 - t1
        if not older:
            return torch.lerp(f1, f0, 1 + x / distance)
        f2, t2 = older[0]
        bend = x * (x + distance) / (t0 - t2) if self.exact else x * x / (2 * distance)
        return torch.lerp(f1, f0, 1 + (x + bend) / distance).sub_(f1 - f2, alpha=bend / (t1 - t2))

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        bend = (Choice("exact", (False, True)),) if self.order == 2 else ()
        return (Choice("order", (1, 2)), *bend, *super().knobs(schedule))

    def describe(self) -> str:
        return f"Taylor {self.order}{' exact' if self.exact and self.order > 1 else ''} on {self.base.describe()}"
