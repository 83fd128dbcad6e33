"""Auto: what serves a goal best, chosen when a run begins and its sampler and schedule are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from ..cache_core.policies import FORA, CachePolicy, Forecast
from ..cache_core.policies.forecast import SHORTEST
from ..cache_core.samplers import several
from ..cache_core.sites import Action, Schedule, Site, Step
from ..cache_core.trace import human_bytes
from .plan import Plan

HALF = 2.0
"""Up to this speed-up Forecast was nearly always the closest of what was measured (docs/frontier.md)."""


class Shelved(NamedTuple):
    """A plan for one goal, out of a prior that belongs to the model."""

    plan: Plan
    policy: Forecast  # the plan, restored
    source: str  # where it was found, for people

    def misfit(self, schedule: Schedule) -> str:
        """How this run is another than it was searched for, in words: sampler, guidance, or the noise of its steps."""
        return self.policy.misfit(schedule) or self.policy.other_noise(schedule)

    def distance(self, schedule: Schedule) -> tuple[bool, int]:
        """What is smaller the nearer a run is to the one that it was searched for: sampler and guidance count before steps."""
        return bool(self.policy.other_sampling(schedule)), abs(self.plan.steps - schedule.total)

    def describe(self) -> str:
        plan = self.plan
        return f"{plan.evaluations} of {plan.steps} steps, expected error {plan.error:.3f}, from {self.source}"


def reaching(plans: Iterable[Plan], speedup: float) -> Plan | None:
    """The plan of least error that computes as many steps as Forecast would for this goal, or one fewer."""
    found = [
        plan
        for plan in plans
        if plan.policy == Forecast.__name__ and 0 <= Forecast(speedup).count(plan.steps) - plan.evaluations <= 1
    ]
    return min(found, key=lambda plan: plan.error, default=None)


@dataclass(frozen=True)
class Auto(CachePolicy):
    """A plan that was searched for this run; else Forecast; for samplers that Forecast cannot serve, FORA.

    Of single branches where the sampler adds noise, of the whole network where it calls the model several times per
    step: what `python tools/dev.py bench choice` found closer; and of the whole network where there is no room for branches
    beside the model, as with long videos. shelf: plans for the goal, the preferred ones first.
    """

    speedup: float = 2.0
    shelf: tuple[Shelved, ...] = field(default=(), repr=False)
    automatic: ClassVar[bool] = True
    level: str = field(default="model", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        Forecast(self.speedup)  # says what is allowed

    def choice(self, schedule: Schedule) -> tuple[CachePolicy, str]:
        """What serves such a run, and why, in words that follow a colon."""
        forecast = Forecast(self.speedup)
        objection = forecast.objection(schedule)
        if schedule.total < SHORTEST or self.speedup == 1.0:
            return forecast, ""  # it computes everything, and says itself why
        if objection is not None:
            large = _beyond(schedule)
            whole = several(schedule) or not schedule.sites or large
            return paced(self.speedup, "model" if whole else "branch"), objection + large
        for shelved in self.shelf:
            if not shelved.misfit(schedule):
                return (
                    shelved.policy,
                    f"a plan was searched for this model, sampler and schedule ({shelved.describe()})",
                )
        why = "no plan was searched for this model and goal"
        if self.shelf:
            nearest = min(self.shelf, key=lambda shelved: shelved.distance(schedule))
            why = f"the plan from {nearest.source} is for {nearest.misfit(schedule)}"
        look = "; beyond 2x look at the picture" if self.speedup > HALF else ""
        if schedule.total < 2 * self.speedup:
            look += f"; at least two steps are computed: {schedule.total / 2:g}x"
        return forecast, why + look

    def sized(self, schedule: Schedule) -> bool:
        return self.choice(schedule)[0].level == "branch"

    def prepared(self, schedule: Schedule) -> CachePolicy:
        return self.choice(schedule)[0].prepared(schedule)

    def remark(self, schedule: Schedule) -> str:
        if schedule.total < SHORTEST or self.speedup == 1.0:
            return f"{self.describe()} chose to compute every step."
        chosen, why = self.choice(schedule)
        return f"{self.describe()} chose {chosen.prepared(schedule).describe()}{': ' if why else ''}{why}."

    def decide(self, step: Step, site: Site) -> Action:
        """Computes: it decides only once, what to become."""
        return Action.COMPUTE

    def describe(self) -> str:
        return f"auto {self.speedup:g}x"


def _beyond(schedule: Schedule) -> str:
    """Why there is no room for the branches beside the model, in words that go on from others; none where there is."""
    needed = sum(schedule.nbytes.get(site.name, 0) for site in schedule.sites)
    if schedule.room is None or needed <= schedule.room:
        return ""
    return f"; its branches would take {human_bytes(needed)}, and there are {human_bytes(max(schedule.room, 0))} beside the model"


def paced(speedup: float, level: str) -> FORA:
    """FORA that computes steps / speedup steps: of every N-th only, up to where the goal is reached.

    Late steps are the ones computed, since they hold the details.
    """
    interval = math.ceil(speedup - 1e-6)
    end = (1 - 1 / speedup) / (1 - 1 / interval) if interval > 1 else 0.0
    return FORA(interval, "aligned", end=min(end, 1.0), level=level)


def preferred(shelf: Iterable[Shelved]) -> Sequence[Shelved]:
    """Those judged on most pictures first, then those of least error."""
    return sorted(shelf, key=lambda shelved: (-shelved.plan.pictures, shelved.plan.error))
