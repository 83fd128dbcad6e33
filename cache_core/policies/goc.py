"""GOC: Accelerating Diffusion Transformer via Gradient-Optimized Cache (arXiv 2503.05156)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from ...errors import SettingError, shown
from ..knobs import Choice, Knob, Mask, choice
from ..samplers import once, told
from ..sites import MODEL, STACK, Action, Feature, Schedule, Site, Step
from .base import check_total
from .correction import Correction

QUEUES = ("used", "recomputed")
ETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.6)
"""What a search tries; 0.8 and 1.2 are the authors'."""
RUINOUS, LONG = 0.8, 3
"""With the queue as used, from which eta on so many reused steps in a row ruined the pictures; .5 did not (docs/papers.md)."""
PUBLISHED_INFLECTIONS, PUBLISHED_STEPS = (17,), 20
"""The authors' constant for DiT-XL/2, DDIM 20: they correct 3, 5, ..., 15 and 19, so every second step but 17."""


@dataclass(frozen=True)
class GOC(Correction):
    """Reuse q0 + eta * (q0 - q1), where q0 and q1 are the two newest outputs in the queue of this branch.

    queue "used" holds what the block used, so that a reused output enters as corrected: the authors' code. "recomputed"
    holds computed outputs only, and those of which some tokens were; with every second step reused, eta = 0.5 is then exact for features linear in the step,
    while "used" at eta > 1 alternates with growing amplitude on them.
    inflections: evaluations at which nothing is corrected, because the features turn there; steps: of the sampler that
    they belong to, 0 for any. joint: correct a branch only where its whole block is reused, as the authors' L2C code
    does (it also asks that each of these branches has two outputs in its queue; here each answers for itself). Where a run
    does not tell which branches there are, each is a block of its own.
    """

    eta: float = 0.8
    queue: str = "used"
    inflections: tuple[int, ...] = ()
    steps: int = 0
    joint: bool = True
    blocks: dict[int, tuple[Site, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not math.isfinite(self.eta):
            raise SettingError(f"GOC: eta is {self.eta}; a finite number is meant, such as 0.8")
        if self.queue not in QUEUES:
            raise SettingError(f"GOC: queue is {shown(self.queue)}; choose one of {', '.join(QUEUES)}")
        check_total("GOC", self.steps)

    @property
    def features(self) -> int:
        return 2

    @property
    def keeps_reused(self) -> bool:
        return self.queue == "used" or self.base.keeps_reused

    def prepared(self, schedule: Schedule) -> GOC:
        ready = replace(self, base=self.base.prepared(schedule))
        blocks = {block: tuple(sites) for block, sites in groupby(schedule.sites, lambda site: site.block)}
        object.__setattr__(ready, "blocks", blocks)
        return ready

    def applies(self, step: Step, site: Site) -> bool:
        """Whether the gradient is applied here, given two outputs to take it from."""
        if step.index in self.inflections:
            return False
        branches = self.blocks.get(site.block, ())
        if not self.joint or site not in branches:
            return True
        return len({self.base.decide(step, other) is Action.COMPUTE for other in branches}) == 1

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        newest = past[0].value
        if len(past) < 2 or not self.applies(step, site):
            return newest
        return torch.lerp(past[1].value, newest, 1 + self.eta)  # past the newest, in one pass

    def remark(self, schedule: Schedule) -> str | None:
        """With a warning where more steps in a row are corrected than the queue of what was used bears."""
        return " ".join(filter(None, (super().remark(schedule), self._warning(schedule)))) or None

    def _warning(self, schedule: Schedule) -> str | None:
        if self.queue != "used" or self.eta < RUINOUS:
            return None
        ready = self.prepared(schedule)
        row = ready.longest(schedule)
        if row < LONG or ready.objection(schedule):
            return None
        return (
            f"{ready.describe()} corrects {row} steps in a row, each by the corrected one before it: with {LONG} in a row an eta of "
            f"{RUINOUS:g} or more ruined the pictures (docs/papers.md); set eta of GOC Policy to 0.25, or its queue to recomputed "
            "and eta to 0.5."
        )

    def longest(self, schedule: Schedule) -> int:
        """At how many steps in a row it will correct one output at most; asked when prepared."""
        served = [site for site in (*schedule.sites, STACK, MODEL) if self.serves(site)] or [MODEL]
        return max(self._row(schedule, site) for site in served)

    def _row(self, schedule: Schedule, site: Site) -> int:
        row = longest = computed = 0
        for step in schedule.evaluations:
            if site != STACK and step.index and self.serves(STACK) and self.decide(step, STACK) is Action.REUSE:
                continue  # no branch is asked about
            action = self.decide(step, site) if step.index else Action.COMPUTE
            computed += action is Action.COMPUTE
            corrected = action is Action.REUSE and computed > 1 and self.applies(step, site)
            row = row + 1 if corrected else 0
            longest = max(longest, row)
        return longest

    def opened(self, schedule: Schedule) -> GOC:
        return replace(super().opened(schedule), steps=self.steps or schedule.total)

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        known = tuple(t for t in self.base.cached(schedule) if t > 1)  # at the first there is no change to go on with
        own = (choice("eta", ETAS, self.eta), Choice("queue", QUEUES), Mask("inflections", known))
        return (*own, *super().knobs(schedule))

    def objection(self, schedule: Schedule) -> str | None:
        if self.steps and self.inflections and schedule.sigmas and schedule.total != self.steps:
            return (
                f"its inflection steps belong to a run of {self.steps} steps and this one has {schedule.total}; "
                f"sample {self.steps} steps, calibrate with {schedule.total}, or correct at all steps"
            )
        if self.inflections and not once(schedule):
            return (
                f"its inflection steps are counted in calls of the model, of which the sampler {told(schedule)} makes several per "
                "step; sample with one such as euler, or correct at all steps"
            )
        return super().objection(schedule)

    def describe(self) -> str:
        return f"GOC {self.eta:g} ({self.queue}) on {self.base.describe()}"
