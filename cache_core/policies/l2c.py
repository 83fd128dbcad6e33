"""L2C: Learning-to-Cache, Accelerating Diffusion Transformer via Layer Caching (arXiv 2406.01733)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...errors import SettingError
from ..knobs import Knob, choice
from ..samplers import once, told
from ..sites import Action, Schedule, Site, Step
from .base import CachePolicy

THRESHOLDS = 16
"""About so many of its gates a search tries as thresholds."""


@dataclass(frozen=True)
class L2C(CachePolicy):
    """Reuse the branches whose learned gate is at most `threshold`, before the gate of the current step.

    scores: one row per evaluation, noisiest first, with one gate in [0, 1] for each name of `sites`; infinity
    computes whatever the threshold. Rows of it are the full steps that the rows after them reuse. steps: of the sampler that the router was made for.
    `priors.router.policy` makes one from a prior.
    """

    scores: tuple[tuple[float, ...], ...] = field(repr=False)
    sites: tuple[str, ...] = field(repr=False)
    steps: int
    threshold: float = 0.1
    reused: tuple[frozenset[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.threshold <= 1.0:
            raise SettingError(f"L2C: threshold is {self.threshold}; gates lie between 0 and 1, and so must it")
        if any(len(row) != len(self.sites) for row in self.scores):
            raise SettingError(f"L2C: every row of scores needs one gate for each of the {len(self.sites)} sites")
        later = (
            frozenset(s for s, g in zip(self.sites, r, strict=True) if g <= self.threshold) for r in self.scores[1:]
        )
        object.__setattr__(self, "reused", (frozenset(), *later))  # the first evaluation has nothing to reuse

    def decide(self, step: Step, site: Site) -> Action:
        known = 0 < step.index < len(self.reused) and (len(self.reused) != step.total or step.index == step.position)
        return Action.REUSE if known and site.name in self.reused[step.index] else Action.COMPUTE

    def objection(self, schedule: Schedule) -> str | None:
        if schedule.total != self.steps:
            return (
                f"its router belongs to {self.steps} sampler steps and this run has {schedule.total}; "
                f"sample {self.steps} steps, or train a router for {schedule.total} with Train Router"
            )
        if not once(schedule) and len(self.reused) == schedule.total:
            return (
                f"its router was trained with one call of the model per step, and the sampler {told(schedule)} makes several; sample "
                "with one such as euler, or train a router for this sampler with Train Router"
            )
        if schedule.sampler and once(schedule) and len(self.reused) != schedule.total:
            return (
                f"its router was trained with {len(self.reused)} calls of the model in {self.steps} steps, and the sampler {told(schedule)} "
                "makes one per step; sample with the one that it was trained with, or train a router for this sampler with Train Router"
            )
        here = {site.name for site in schedule.sites}
        if here and (strange := here ^ set(self.sites)):
            whose = "the router" if min(strange) in self.sites else "the model"
            return (
                f"its router belongs to another network ({len(self.sites)} branches there, {len(here)} here; "
                f"{min(strange)} is only in {whose}); train one for this model with Train Router"
            )
        if not any(self.reused):
            return (
                f"no gate of its router is at or below threshold {self.threshold:g}{self._smallest()}; raise it, or train the router longer "
                "or with a larger penalty"
            )
        return None

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        """A lower threshold costs more and a higher one less: of use only with room to the ceiling, or to make some."""
        gates = sorted({gate for row in self.scores for gate in row if 0.0 <= gate <= 1.0})
        return (choice("threshold", tuple(gates[:: max(len(gates) // THRESHOLDS, 1)]), self.threshold),)

    def _smallest(self) -> str:
        gates = [gate for row in self.scores[1:] for gate in row if math.isfinite(gate)]
        return f", the smallest is {min(gates):.2g}" if gates else ""

    def describe(self) -> str:
        count = sum(map(len, self.reused))
        return f"L2C {count} of {len(self.scores) * len(self.sites)} reused (threshold {self.threshold:g})"
