"""What calibration measures. Every figure is a sum over pictures, so that trajectories, prompts and machines add up."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from ..cache_core.sites import Feature, Site, Step, Streams
from .prior import Prior, PriorError, Subject

ROLES = {0: "positive", 1: "negative"}


class Statistics:
    """An observer of CacheRun that turns fully computed sampling runs into a Prior.

    gaps: the longest reuse distance to measure, in evaluations. features: also keep the mean output of every site at
    every evaluation (float32 while running, half precision in the file), which EOC needs.
    """

    def __init__(self, gaps: int = 2, features: bool = False):
        if gaps < 1:
            raise ValueError(f"Statistics: gaps is {gaps}; the shortest reuse distance is 1")
        self.history, self.features = gaps, features
        self.samples = 0
        self._sites: dict[str, None] = {}
        self._sigmas: dict[int, float] = {}
        self._power: dict[tuple[int, str], Tensor] = defaultdict(lambda: torch.zeros(()))
        self._difference: dict[tuple[int, int, str], Tensor] = defaultdict(lambda: torch.zeros(()))
        self._weight: dict[tuple, int] = defaultdict(int)
        self._mean: dict[tuple[int, str], Tensor] = {}
        self._mean_weight: dict[tuple[int, str], int] = defaultdict(int)
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
        self._power[key] = self._power[key].to(out.device) + exact.square().mean() * rows
        for feature in past:
            gap = step.index - feature.step.index
            if 1 <= gap <= self.history and feature.value.shape == out.shape:
                change = (exact - feature.value.float()).square().mean() * rows
                of_gap = (gap, *key)
                self._weight[of_gap] += rows
                self._difference[of_gap] = self._difference[of_gap].to(out.device) + change
        if self.features:
            for lane, own in zip(streams, exact.chunk(len(streams)), strict=True):
                if lane.cond == 0 and lane.visit == 0:
                    total = own.sum(0)
                    self._mean[key] = self._mean[key] + total if key in self._mean else total
                    self._mean_weight[key] += len(own)

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

        def table(sums: dict, *prefix: int) -> Tensor:
            rows = [[self._at(sums, (*prefix, t, s)) for s in sites] for t in steps]
            return torch.tensor(rows, dtype=torch.float64).reshape(len(steps), len(sites))

        tables = {
            "sigmas": torch.tensor(self._schedule, dtype=torch.float64),
            "power": table(self._power),
            "difference": torch.stack([table(self._difference, g) for g in range(1, self.history + 1)]),
        }
        tables |= {f"gram/{role}": gram / self._gram_weight[role] for role, gram in self._gram.items()}
        if self.features:
            always = [s for s in sites if all((t, s) in self._mean for t in steps)]
            tables |= {f"mean/{s}": self._mean_features(s, steps) for s in always}
        return Prior(subject, tuple(sites), self.samples, tables, shape, seeds)

    def _at(self, sums: dict, key: tuple) -> float:
        return float(sums[key]) / self._weight[key] if key in sums else float("nan")

    def _mean_features(self, site: str, steps: range) -> Tensor:
        return torch.stack([self._mean[t, site] / self._mean_weight[t, site] for t in steps]).half().cpu()
