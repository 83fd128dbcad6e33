"""What calibration measures. Every figure is a sum over pictures, so that trajectories, prompts and machines add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from ..cache_core.policies.base import CachePolicy
from ..cache_core.sites import Action, Feature, Schedule, Site, Step, Streams
from .prior import Prior, PriorError, Subject

ROLES = {0: "positive", 1: "negative"}


class Statistics:
    """An observer of CacheRun that turns fully computed sampling runs into a Prior.

    gaps: the longest reuse distance to measure, in evaluations. features: also keep the mean output of every site at
    every evaluation (float32 while running, half precision in the file), which EOC needs. policy: keep instead how that
    mean changes, and only where this policy does not compute.
    """

    def __init__(self, gaps: int = 2, features: bool = False, policy: CachePolicy | None = None):
        if gaps < 1:
            raise ValueError(f"Statistics: gaps is {gaps}; the shortest reuse distance is 1")
        if policy is not None and policy.level != "branch":
            raise PriorError(
                f"{policy.describe()} does not reuse branches, and mean features are those of branches; set its scope "
                "to branches, or calibrate without it"
            )
        self.history, self.features, self.policy = gaps, features, policy
        self._prepared_for = 0
        self.samples = 0
        self._sites: dict[str, None] = {}
        self._sigmas: dict[int, float] = {}
        self._power: dict[tuple[int, str], Tensor] = {}
        self._difference: dict[tuple[int, int, str], Tensor] = {}
        self._weight: dict[tuple, int] = defaultdict(int)
        self._mean: dict[tuple[int, str], Tensor] = {}
        self._mean_weight: dict[tuple[int, str], int] = defaultdict(int)
        self._trend: dict[tuple[int, str], Tensor] = {}
        self._trend_weight: dict[tuple[int, str], int] = defaultdict(int)
        self._gram: dict[str, Tensor] = {}
        self._gram_weight: dict[str, int] = defaultdict(int)
        self._schedule: list[float] = []
        self._trajectory: dict[tuple[str, object], dict[int, Tensor]] = defaultdict(dict)

    def branch(self, step: Step, site: Site, streams: Streams, out: Tensor, past: list[Feature]) -> None:
        key = (step.index, site.name)
        self._sites[site.name] = None
        exact = out.float()
        rows = len(out)
        self._weight[key] += rows
        _grown(self._power, key, exact.square().mean() * rows)
        for feature in past:
            gap = step.index - feature.step.index
            if 1 <= gap <= self.history and feature.value.shape == out.shape:
                change = (exact - feature.value.float()).square().mean() * rows
                of_gap = (gap, *key)
                self._weight[of_gap] += rows
                _grown(self._difference, of_gap, change)
        if self.features and self.policy is None:
            self._add(self._mean, self._mean_weight, key, exact, streams)
        elif self.features and self._reused(step, site):
            for before in (f.value for f in past if f.step.index == step.index - 1 and f.value.shape == out.shape):
                self._add(self._trend, self._trend_weight, key, exact - before.float(), streams)

    def _reused(self, step: Step, site: Site) -> bool:
        if self._prepared_for != step.total:
            self._prepared_for, self.policy = step.total, self.policy.prepared(Schedule(step.total))
        return step.index > 0 and self.policy.decide(step, site) is not Action.COMPUTE

    @staticmethod
    def _add(sums: dict, weights: dict, key: tuple[int, str], value: Tensor, streams: Streams) -> None:
        """Add the rows of the positive cond."""
        for lane, own in zip(streams, value.chunk(len(streams)), strict=True):
            if lane.cond == 0 and lane.visit == 0:
                _grown(sums, key, own.sum(0))
                weights[key] += len(own)

    def model(self, step: Step, streams: Streams, derivative: Tensor) -> None:
        self._sigmas[step.index] = step.sigma
        for lane, own in zip(streams, derivative.chunk(len(streams)), strict=True):
            if lane.cond in ROLES and lane.visit == 0:
                self._trajectory[ROLES[lane.cond], lane.key][step.index] = own

    def end_trajectory(self, pictures: int) -> None:
        """Close one sampling run of `pictures` pictures. Raises PriorError when it took other steps than the first."""
        schedule = [self._sigmas[t] for t in sorted(self._sigmas)]
        same = len(schedule) == len(self._schedule) and torch.allclose(
            torch.tensor(schedule), torch.tensor(self._schedule), rtol=1e-4
        )
        if self._schedule and not same:
            raise PriorError(
                f"the sampler took other steps in this run ({len(schedule)} calls of the model) than in the first "
                f"({len(self._schedule)}): its steps depend on the picture. Calibrate with a sampler of fixed steps"
            )
        for (role, _), moments in self._trajectory.items():
            if len(moments) == len(schedule):  # a cond that was not there all the time has no T x T table
                stack = torch.stack([moments[i].float().flatten() for i in sorted(moments)])
                gram = (stack @ stack.T / stack.shape[1]).double().cpu() * pictures
                self._gram[role] = self._gram.get(role, 0) + gram
                self._gram_weight[role] += pictures
        self._schedule = schedule
        self._sigmas.clear()
        self._trajectory.clear()
        self.samples += pictures

    def prior(self, subject: Subject, shape: tuple[int, ...], seeds: tuple[int, ...]) -> Prior:
        """The means over everything observed so far."""
        if not self.samples or not self._schedule:
            raise PriorError("nothing was calibrated: no sampling run was completed")
        sites, steps = list(self._sites), range(len(self._schedule))

        power, difference = _fetched(self._power), _fetched(self._difference)

        def table(sums: dict[tuple, float], *prefix: int) -> Tensor:
            rows = [[self._at(sums, (*prefix, t, s)) for s in sites] for t in steps]
            return torch.tensor(rows, dtype=torch.float64).reshape(len(steps), len(sites))

        tables = {
            "sigmas": torch.tensor(self._schedule, dtype=torch.float64),
            "power": table(power),
            "difference": torch.stack([table(difference, g) for g in range(1, self.history + 1)]),
        }
        tables |= {f"gram/{role}": gram / self._gram_weight[role] for role, gram in self._gram.items()}
        always = [s for s in sites if all((t, s) in self._mean for t in steps)]
        tables |= {f"mean/{s}": _means(self._mean, self._mean_weight, s, steps) for s in always}
        for site in sites:
            if kept := sorted(t for t, s in self._trend if s == site):
                tables[f"trend/{site}"] = _means(self._trend, self._trend_weight, site, kept)
                tables[f"trend_steps/{site}"] = torch.tensor(kept)
        return Prior(subject, tuple(sites), self.samples, tables, shape, seeds)

    def _at(self, sums: dict[tuple, float], key: tuple) -> float:
        return sums[key] / self._weight[key] if key in sums else float("nan")


def _grown(sums: dict[tuple, Tensor], key: tuple, by: Tensor) -> None:
    """Add to a sum, on the device of what is added."""
    sums[key] = sums[key].to(by.device) + by if key in sums else by


def _fetched(sums: dict[tuple, Tensor]) -> dict[tuple, float]:
    """Scalars, brought over from the device all at once."""
    if not sums:
        return {}
    device = next(iter(sums.values())).device
    return dict(zip(sums, torch.stack([value.to(device) for value in sums.values()]).tolist(), strict=True))


def _means(sums: dict, weights: dict, site: str, steps: Iterable[int]) -> Tensor:
    return torch.stack([(sums[t, site] / weights[t, site]).half().cpu() for t in steps])
