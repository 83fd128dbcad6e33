"""Plan: what a search found for one number of computed steps, and how one is chosen by a goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..cache_core.extrapolation import front_loaded, resized, spread, widening
from ..cache_core.policies import CachePolicy, Forecast
from ..cache_core.policies.base import MOST_STEPS
from ..cache_core.policies.forecast import FASTEST, same_noise
from ..cache_core.sites import Schedule
from ..errors import SettingError, shown
from .fit import cheapest, coherent_cost, step_errors
from .record import fits, record, restored
from .search import BLOWN, Search

if TYPE_CHECKING:
    from .prior import Prior

LONGEST = 256
"""Steps up to which the cheapest schedule by a Gram matrix is worked out, which takes time and memory by their cube."""

SHAPES = {
    "MeanCache (arXiv 2601.19961)": (0, 1, 3, 7, 14, 21, 28, 35, 42, 49),
    "Spectrum (arXiv 2603.01623)": (0, 1, 2, 3, 4, 6, 11, 19, 30, 44),
}
"""Published schedules of 50 steps: where a search may begin."""


@dataclass(frozen=True)
class Plan:
    """A policy with its settings, and what it did on the pictures that it was judged by, best others than it was searched with."""

    policy: str  # its class
    settings: dict  # its fields, as JSON types
    steps: int  # of the sampler
    evaluations: int  # how many of them are computed
    error: float  # mean over pictures of the relative L2 distance of the final latent to the uncached one
    unplanned: float  # the same of evenly spread steps
    pictures: int

    @property
    def speedup(self) -> float:
        """In evaluations: what wall time can come to at best."""
        return self.steps / self.evaluations

    @property
    def computed(self) -> tuple[int, ...]:
        """Which steps it computes, where its settings list them."""
        steps = self.settings.get("computed")
        return tuple(steps) if isinstance(steps, (list, tuple)) and all(fits(t, int) for t in steps) else ()

    @property
    def goal(self) -> tuple[str, int, int]:
        """Which policy, how many steps, and how many of them computed."""
        return (self.policy, self.steps, self.evaluations)

    def restored(self) -> CachePolicy:
        """The policy. Raises SettingError where this version has none such, or none with such settings."""
        try:
            return restored(self.policy, self.settings)
        except SettingError as error:
            raise SettingError(f"a plan cannot be used: {error}. Search again with Search Plans") from error

    def as_dict(self) -> dict:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def parsed(data: dict) -> Plan:
        """From what `as_dict` gave, out of a file. Raises SettingError, TypeError or KeyError on anything else."""
        plan = Plan(**{f.name: data[f.name] for f in fields(Plan)})
        counts = (plan.steps, plan.evaluations, plan.pictures)
        if not all(fits(n, int) and n >= 1 for n in counts) or not plan.evaluations <= plan.steps <= MOST_STEPS:
            raise SettingError(
                f"a plan that computes {shown(plan.evaluations)} of {shown(plan.steps)} steps, judged on "
                f"{shown(plan.pictures)} pictures; whole numbers from 1 were expected, and at most {MOST_STEPS} steps"
            )
        if not all(fits(x, float) and x >= 0 for x in (plan.error, plan.unplanned)):
            raise SettingError(
                f"a plan whose errors are {shown(plan.error)} and {shown(plan.unplanned)}; finite numbers from 0 were expected"
            )
        if not isinstance(plan.policy, str) or not isinstance(plan.settings, dict):
            raise SettingError("a plan whose policy is no name, or whose settings are no object")
        return plan


def merged(sets: Iterable[Sequence[Plan]]) -> tuple[Plan, ...]:
    """One plan per policy, steps and computed steps: the one judged on most pictures; fastest last."""
    best: dict[tuple, Plan] = {}
    for plan in (plan for plans in sets for plan in plans):
        if plan.goal not in best or plan.pictures > best[plan.goal].pictures:
            best[plan.goal] = plan
    return tuple(sorted(best.values(), key=lambda p: p.speedup))


def superseded(plans: Sequence[Plan], by: Sequence[Plan]) -> tuple[Plan, ...]:
    """`by`, and of `plans` what serves another goal; fastest last."""
    new = {plan.goal for plan in by}
    return merged([by, [plan for plan in plans if plan.goal not in new]])


def search_plans(
    search: Search,
    candidates: Callable[[int, CachePolicy | None], Sequence[CachePolicy]],
    counts: Iterable[int],
    samplings: float,
    judge: Search | None = None,
) -> list[Plan]:
    """One plan per number of computed steps, of which each begins where the one before ended.

    candidates(count, found before): where to begin, evenly spread steps and the default first, which are judged in any case.
    samplings: what all of it may cost. judge: other pictures; what was found is kept where it is better than the first two on
    these, too. Raises SettingError where sampling computes everything all the same, or nothing finite comes of it.
    """
    counts, plans, found, total = sorted(set(counts), reverse=True), [], None, search.schedule.total
    for i, count in enumerate(counts):
        begin = candidates(count, found)
        left = samplings - search.spent
        if judge:
            left -= judge.spent + 3 * sum(counts[i:]) / total  # even steps, the default and what is found
        found, _ = search.best(begin, max(0.0, left) / (len(counts) - i), surely=2)
        if search.cost(begin[0]) >= 1.0 > count / total:
            raise SettingError(
                f"nothing to plan: {begin[0].describe()} computed everything on these pictures; the log says why"
            )
        judging = judge or search
        found = min([*begin[:2], found], key=judging.judged)
        error, unplanned = judging.judged(found), judging.judged(begin[0])
        if error >= BLOWN:
            raise SettingError(
                f"with {count} of {total} steps computed, pictures are not finite; ask for a smaller speed-up"
            )
        plans.append(
            Plan(
                **record(found),
                steps=total,
                evaluations=count,
                error=error,
                unplanned=unplanned,
                pictures=len(judging.reference),
            )
        )
    return plans


def forecasts(schedule: Schedule, gram: Tensor | None = None) -> Callable[[int, CachePolicy | None], list[Forecast]]:
    """Where the search for a Forecast begins.

    Evenly spread; the default; found before; evenly spread without extrapolation; the cheapest by the Gram matrix; published.
    """
    base, total, cost = Forecast(sigmas=schedule.sigmas), schedule.total, None
    if gram is not None and len(gram) == total <= LONGEST:
        cost = coherent_cost(gram, schedule.sigmas, base.prepared(schedule).places)

    def at(count: int, found: CachePolicy | None) -> list[Forecast]:
        first = replace(base, computed=spread(total, count)).prepared(schedule)
        default = replace(base, speedup=min(total / count, FASTEST)).prepared(schedule)
        shapes = [shape(total, count) for shape in (widening, front_loaded)]
        shapes += [cheapest(cost, count)] if cost is not None else []
        shapes += [resized(shape, 50, count, np.linspace(0, 50, total, endpoint=False)) for shape in SHAPES.values()]
        begin = [first]
        begin += [replace(default, speedup=first.speedup)] if len(default.computed) == count else []
        if found is not None:  # its settings, at its own density of steps
            begin += [replace(found, computed=resized(found.computed, total, count, range(total)))]
        begin += [replace(first, gains=((0.0, 0.0),) * total)]
        begin += [replace(first, computed=shape) for shape in shapes if len(shape) == count]
        return list(dict.fromkeys(begin))

    return at


def step_errors_of(policy: CachePolicy, steps: int, prior: Prior) -> list[float]:
    """Predicted relative error (T,) of the derivative at each step of a Forecast; empty where the prior is of other steps."""
    gram = prior.tables.get("gram/positive")
    if not isinstance(policy, Forecast) or gram is None or len(gram) != steps:
        return []
    if policy.sigmas and not same_noise(policy.sigmas[:-1], prior.tables["sigmas"].tolist()):
        return []
    ready = policy.prepared(Schedule(steps, policy.sigmas, "", prior.subject.prediction))
    gains = [ready.gains_at(step) for step in range(steps)]
    return step_errors(gram, ready.places, ready.computed, gains)


TAKEN = ("computed", "gains", "coordinate", "order", "curvature", "corrector")
"""What a run takes from the plan of a Forecast."""


def followed(prior: Prior, record: dict | None) -> Plan | None:
    """The plan that a run followed to the letter, by what its trace says of its policy: with the same noise, sampler and cfg."""
    if not record or record["policy"] != Forecast.__name__:
        return None
    ran = restored(record["policy"], record["settings"])
    for plan in prior.plans:
        with suppress(SettingError):  # one of a later version
            policy = plan.restored()
            if (
                isinstance(policy, Forecast)
                and all(getattr(policy, name) == getattr(ran, name) for name in TAKEN)
                and same_noise(policy.sigmas, ran.sigmas)
                and policy.sampler in ("", ran.sampler)
                and math.isclose(policy.cfg or prior.subject.cfg, ran.cfg, rel_tol=1e-3)
            ):
                return plan
    return None


def chosen(plans: Sequence[Plan], speedup: float = 0.0, evaluations: int = 0, error: float = 0.0) -> Plan:
    """The plan of least error that is at least so fast; of so many computed steps at most; or the fastest within an error.

    Exactly one goal is given. Raises SettingError, naming what there is, when no plan reaches it.
    """
    if not plans:
        raise SettingError("there are no plans: put Search Plans behind Calibrate or Load Prior")
    have = "; ".join(f"{p.speedup:.2f}x ({p.evaluations} of {p.steps} steps) at {p.error:.3f}" for p in plans)
    if error:
        within = [p for p in plans if p.error <= error]
        if not within:
            raise SettingError(
                f"no plan has an error of {error:g} or less. There are: {have}. Allow a larger error, or search with "
                "smaller speed-ups in Search Plans"
            )
        return min(within, key=lambda p: (p.evaluations, p.error))
    most = evaluations or max(math.floor(p.steps / speedup + 1e-6) for p in plans)
    fast = [p for p in plans if p.evaluations <= most]
    if not fast:
        goal = f"{evaluations} computed steps" if evaluations else f"{speedup:g}x"
        needed = max(p.steps for p in plans) / evaluations if evaluations else speedup
        raise SettingError(
            f"no plan reaches {goal}. There are: {have}. Ask for less, or search with {needed:.3g} among the speed-ups "
            "of Search Plans"
        )
    return min(fast, key=lambda p: (p.error, p.evaluations))
