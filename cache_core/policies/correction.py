"""What GOC, EOC and Taylor have in common: another policy decides, they change what is used in place of computing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from ...errors import SettingError
from ..sites import Action, Feature, Schedule, Site, Step
from .base import CachePolicy


@dataclass(frozen=True)
class Correction(CachePolicy):
    """Leaves every decision to `base`. Raises SettingError when base itself changes what is reused."""

    base: CachePolicy
    level: str = field(init=False, repr=False, compare=False, kw_only=True)

    def __post_init__(self):
        if type(self.base).reuse is not CachePolicy.reuse:
            raise SettingError(
                f"{type(self).__name__} corrects plain reuse, and {type(self.base).__name__} already replaces it; put "
                f"{type(self).__name__} on a policy that only decides, such as FORA or L2C"
            )
        object.__setattr__(self, "level", self.base.level)

    @property
    def features(self) -> int:
        """How many past outputs the correction itself looks at."""
        return 1

    @property
    def history(self) -> int:
        return max(self.features, self.base.history) if self.base.history else 0

    @property
    def keeps_reused(self) -> bool:
        return self.base.keeps_reused

    @property
    def stack(self) -> bool:
        return self.base.stack

    @property
    def marks(self) -> str:
        return self.base.marks

    def decide(self, step: Step, site: Site) -> Action:
        return self.base.decide(step, site)

    def select(self, step: Step, site: Site, x: Tensor, past: list[Feature]) -> Tensor:
        return self.base.select(step, site, x, past)

    def prepared(self, schedule: Schedule) -> Correction:
        return replace(self, base=self.base.prepared(schedule))

    def objection(self, schedule: Schedule) -> str | None:
        return self.base.objection(schedule)
