"""FORA: Fast-Forward Caching in Diffusion Transformer Acceleration (arXiv 2407.01425)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...errors import SettingError, shown
from ..knobs import Knob, Steps
from ..sites import Action, Schedule, Site, Step
from .base import CachePolicy, check_steps, check_total

PHASES = ("published", "aligned")
PRESETS = {
    "custom": {},
    "published": {"interval": 3, "phase": "published", "start": 0.0, "end": 1.0},
    "25 %": {"interval": 2, "phase": "aligned", "start": 0.0, "end": 0.5},
    "50 %": {"interval": 2, "phase": "aligned", "start": 0.0, "end": 1.0},
    "65 %": {"interval": 3, "phase": "aligned", "start": 0.0, "end": 1.0},
    "75 %": {"interval": 4, "phase": "aligned", "start": 0.0, "end": 1.0},
    "first half": {"start": 0.0, "end": 0.5},
}
"""Settings by name: the authors' own command, the shares of reused steps that EOC and GOC speak of, and a window."""


@dataclass(frozen=True)
class FORA(CachePolicy):
    """Compute every `interval`-th step and reuse all branch outputs in between, before the gate of the current step.

    phase "published" counts from the last step as the authors' code does: the first and the last step are always
    computed. phase "aligned" counts from the first step, which is what later papers mean by 50 % (N = 2) and 75 %
    (N = 4). Reuse is allowed while start <= progress < end; aligned with N = 2 and end = 0.5 is their 25 %.

    computed: the steps to compute, in place of all that; steps: of the sampler that they belong to.
    """

    interval: int = 2
    phase: str = "published"
    start: float = 0.0
    end: float = 1.0
    computed: tuple[int, ...] = field(default=(), kw_only=True)
    steps: int = field(default=0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.interval < 1:
            raise SettingError(f"FORA: interval is {self.interval}; it counts steps, so use 1 (no caching) or more")
        if self.phase not in PHASES:
            raise SettingError(f"FORA: phase is {shown(self.phase)}; choose one of {', '.join(PHASES)}")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise SettingError(f"FORA: start {self.start} and end {self.end} must satisfy 0 <= start <= end <= 1")
        check_total("FORA", self.steps)
        check_steps("FORA", self.computed, self.steps)

    def decide(self, step: Step, site: Site) -> Action:
        if self.computed:
            return Action.COMPUTE if step.index == 0 or step.position in self.computed else Action.REUSE
        count = step.position if self.phase == "aligned" else step.total - 1 - step.position
        inside = self.start <= step.progress < self.end
        return Action.REUSE if inside and step.index > 0 and count % self.interval else Action.COMPUTE

    def objection(self, schedule: Schedule) -> str | None:
        total = schedule.total
        if self.computed and total != self.steps:
            return f"its computed steps belong to a run of {self.steps} steps and this one has {total}; sample {self.steps}"
        if self.interval > 1 and total < 3:
            return f"a run of {total} step{'s'[: total > 1]} leaves nothing to reuse"
        if self.start == self.end and not self.computed:
            return f"its window is empty: start and end are both {self.start:g}"
        return None

    def opened(self, schedule: Schedule) -> FORA:
        if self.computed:
            return self
        cached = self.cached(schedule)
        computed = tuple(t for t in range(schedule.total) if t not in cached)
        return replace(self, computed=computed, steps=schedule.total)

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        return (Steps("computed"),) if 1 < len(self.computed) < self.steps else ()

    def describe(self) -> str:
        if self.computed:
            return f"FORA, {len(self.computed)} of {self.steps} computed"
        window = "" if (self.start, self.end) == (0.0, 1.0) else f", {self.start:.0%} to {self.end:.0%}"
        scope = ", whole network" if self.level == "model" else ""
        return f"FORA N={self.interval} ({self.phase}{window}{scope})"
