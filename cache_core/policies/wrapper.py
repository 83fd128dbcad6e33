"""What all policies have in common that take another policy: it decides, and they leave alone what is not theirs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from ..knobs import Knob, within
from ..sites import Action, Feature, Schedule, Site, Step
from .base import Aside, CachePolicy


@dataclass(frozen=True)
class Wrapper(CachePolicy):
    """Leaves every decision to `base`, and is asked about what base is asked about."""

    base: CachePolicy
    level: str = field(init=False, repr=False, compare=False, kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "level", self.base.level)

    def serves(self, site: Site) -> bool:
        return self.base.serves(site)

    def keeps(self, site: Site) -> bool:
        return self.base.keeps(site)

    @property
    def history(self) -> int:
        return self.base.history

    @property
    def keeps_reused(self) -> bool:
        return self.base.keeps_reused

    @property
    def stack(self) -> bool:
        return self.base.stack

    @property
    def marks(self) -> str:
        return self.base.marks

    @property
    def aside(self) -> Aside | None:
        return self.base.aside

    def decide(self, step: Step, site: Site) -> Action:
        return self.base.decide(step, site)

    def select(self, step: Step, site: Site, x: Tensor, past: list[Feature]) -> Tensor:
        return self.base.select(step, site, x, past)

    def prepared(self, schedule: Schedule) -> Wrapper:
        return replace(self, base=self.base.prepared(schedule))

    def remark(self, schedule: Schedule) -> str | None:
        return self.base.remark(schedule)

    def objection(self, schedule: Schedule) -> str | None:
        return self.base.objection(schedule)

    def opened(self, schedule: Schedule) -> Wrapper:
        return replace(self, base=self.base.opened(schedule))

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        return tuple(within("base", knob) for knob in self.base.knobs(schedule))
