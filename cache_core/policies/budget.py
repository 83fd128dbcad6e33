"""Budget: another policy within so many bytes. What saves most for the error that it causes is kept, the rest computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from ...errors import SettingError, shown
from ..sites import STACK, Action, Feature, Schedule, Site, Step
from ..trace import human_bytes
from .wrapper import Wrapper

MIB = 2**20
SMALLEST = 1e-6
"""Errors below this are no reason to prefer a branch to another."""


@dataclass(frozen=True)
class Budget(Wrapper):
    """Keep at most `megabytes` (of 2**20 bytes) of what `base` reuses; what is not kept is always computed.

    Chosen when the sizes of the run are known: first STACK, where base reuses it, since one output stands for all
    blocks; then, as long as they fit, the branches of most arithmetic saved per byte and per error. What a branch
    saves is its floating point operations at every evaluation that reuses it, wholly or in part.

    errors: (branch, relative error of reusing it), as `priors.reuse.errors` takes them from a prior; without any, all
    count alike. sites: what is kept, in place of a choice.
    """

    megabytes: float = 1024.0
    errors: tuple[tuple[str, float], ...] = ()
    sites: tuple[str, ...] = ()
    kept: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.megabytes < math.inf:
            raise SettingError(f"Budget: megabytes is {self.megabytes:g}; give a positive number")
        if self.level != "branch" or not self.base.history:
            raise SettingError(
                f"Budget chooses among branches, and {self.base.describe()} keeps none; use it without a budget"
            )
        if self.base.limit is not None:
            raise SettingError(f"Budget: {self.base.describe()} already has one; the smaller one is enough")
        if wrong := [error for _, error in self.errors if not 0.0 <= error < math.inf]:
            raise SettingError(f"Budget: an error is {shown(wrong[0])}; errors must be finite and not negative")
        object.__setattr__(self, "kept", frozenset(self.sites))

    @property
    def limit(self) -> int:
        return int(self.megabytes * MIB)

    @property
    def changes(self) -> str:
        return self.base.changes

    def serves(self, site: Site) -> bool:
        return self.base.serves(site) and (site != STACK or self.keeps(site))

    def keeps(self, site: Site) -> bool:
        return site.name in self.kept

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        return self.base.reuse(step, site, past)

    def prepared(self, schedule: Schedule) -> Budget:
        ready = replace(self, base=self.base.prepared(replace(schedule, limit=self.limit)))
        return ready if self.sites else replace(ready, sites=ready.choice(schedule), errors=())

    def choice(self, schedule: Schedule) -> tuple[str, ...]:
        """The names of what is kept in such a run; asked of one whose base is prepared."""
        if not schedule.nbytes:
            return ()
        each = {name: nbytes * self.history for name, nbytes in schedule.nbytes.items()}
        steps, skipped = schedule.evaluations, self._skipped(schedule)
        stack = bool(skipped) and each[STACK.name] <= self.limit
        if stack:
            steps = [step for step in steps if step not in skipped]
        errors = dict(self.errors)
        unknown = max(errors.values(), default=1.0)
        worth = {
            site.name: schedule.flops[site.name]
            * self._reuses(site, steps)
            / max(errors.get(site.name, unknown), SMALLEST)
            for site in schedule.sites
        }
        first = (STACK.name,) if stack else ()
        return first + fitting(self.limit - sum(each[name] for name in first), each, worth)

    def share(self, schedule: Schedule, kept: frozenset[str] | None = None) -> float:
        """The part of the blocks' arithmetic over such a run that is reused with these kept, or with everything."""
        everything = sum(schedule.flops[site.name] for site in schedule.sites)
        skipped = self._skipped(schedule) if kept is None or STACK.name in kept else frozenset()
        steps = [step for step in schedule.evaluations if step not in skipped]
        branches = [site for site in schedule.sites if kept is None or site.name in kept]
        found = everything * len(skipped) + sum(schedule.flops[s.name] * self._reuses(s, steps) for s in branches)
        return found / max(everything * schedule.total, 1)

    def _reuses(self, site: Site, steps: Iterable[Step]) -> int:
        """At how many of these steps base reuses a branch, wholly or in part."""
        return sum(self.base.decide(step, site) is not Action.COMPUTE for step in steps)

    def _skipped(self, schedule: Schedule) -> frozenset[Step]:
        """The steps at which all blocks are reused at once."""
        later = schedule.evaluations[1:] if self.base.serves(STACK) else ()
        return frozenset(step for step in later if self.base.decide(step, STACK) is Action.REUSE)

    def remark(self, schedule: Schedule) -> str | None:
        """What was chosen, once the sizes are known, and what base has to say."""
        ready = self.prepared(schedule)
        if ready.objection(schedule):
            return None
        own = "" if self.sites else self._chosen(ready, schedule)
        return " ".join(filter(None, (own, super().remark(schedule)))) or None

    def _chosen(self, ready: Budget, schedule: Schedule) -> str:
        served = [*(site.name for site in schedule.sites), *([STACK.name] if self.base.serves(STACK) else [])]
        held, whole = (sum(schedule.nbytes[n] for n in names) * self.history for names in (ready.sites, served))
        branches = sum(name != STACK.name for name in ready.sites)
        stack = " and the state after all blocks" if STACK.name in ready.sites else ""
        return (
            f"{self.describe()} keeps {branches} of {len(schedule.sites)} branches{stack}, {human_bytes(held)} of "
            f"{human_bytes(whole)}; {ready.share(schedule, ready.kept):.0%} of the blocks' arithmetic is reused "
            f"instead of {ready.share(schedule):.0%}."
        )

    def objection(self, schedule: Schedule) -> str | None:
        if not schedule.nbytes and not self.sites:
            return "the sizes of this model's branches are not known before sampling"
        if objection := super().objection(schedule):
            return objection
        if schedule.nbytes and not self.sites:
            reused = [site for site in schedule.sites if self._reuses(site, schedule.evaluations[1:])]
            if not reused:
                return f"{self.base.describe()} reuses nothing in this run"
            least = min(schedule.nbytes[site.name] for site in reused) * self.history
            return (
                f"not one branch fits into {human_bytes(self.limit)}, the smallest takes {human_bytes(least)}; "
                "raise megabytes, or set store of Apply Cache to '8 bit'"
            )
        return None

    def describe(self) -> str:
        return f"Budget {self.megabytes:g} MiB on {self.base.describe()}"


def fitting(room: int, nbytes: Mapping[str, int], worth: Mapping[str, float]) -> tuple[str, ...]:
    """What to put into `room` bytes, of most worth per byte first; what does not fit, or has no worth or size, is passed over.

    Greedy: where things are small beside the room, as branches are, what is lost to the best choice is less than one.
    """
    found, known = [], [name for name in worth if worth[name] > 0 and nbytes[name] > 0]
    for name in sorted(known, key=lambda name: worth[name] / nbytes[name], reverse=True):
        if nbytes[name] <= room:
            found.append(name)
            room -= nbytes[name]
    return tuple(found)
