"""What calibration measures. Every figure is a sum over pictures, so that trajectories, prompts and machines add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache_core.policies.base import CachePolicy
from ..cache_core.sites import Action, Feature, Schedule, Site, Step, Streams
from .prior import Prior, PriorError, Subject

ROLES = {0: "positive", 1: "negative"}

CHUNK = 2**18
"""Numbers that are looked at at once on a CPU: what lies between then stays in its caches."""


class Squares(NamedTuple):
    """What one output adds to a sum."""

    key: tuple  # (evaluation, site), or (gap, evaluation, site)
    rows: int
    of_row: float  # what makes a row's mean of the sum
    total: Tensor  # a scalar, on the device


def squares(x: Tensor, *past: Tensor) -> list[Tensor]:
    """Sums of squares of x, and of x less each of some tensors of its shape: float32 scalars on the device."""
    if x.device.type != "cpu":
        return _in_few_launches(x, past)
    found: list[list[Tensor]] = [[] for _ in (x, *past)]
    for part, *others in zip(*(t.flatten().split(CHUNK) for t in (x, *past)), strict=True):
        exact = part.float()
        for sums, t in zip(found, (exact, *(exact - other.float() for other in others)), strict=True):
            sums.append(t.dot(t))
    return [torch.stack(sums).sum() for sums in found]


def _in_few_launches(x: Tensor, past: Sequence[Tensor]) -> list[Tensor]:
    exact = x if x.dtype is torch.bfloat16 else x.float()  # its differences are rounded without a bias, if at all
    differences = torch._foreach_sub([exact] * len(past), past) if past else ()
    return list(torch._foreach_pow(torch._foreach_norm([exact, *differences], 2, torch.float32), 2))


class Statistics:
    """An observer of CacheRun that turns fully computed sampling runs into a Prior.

    gaps: the longest reuse distance to measure, in evaluations. branches: look at them; without, the network's output
    alone is measured, and nothing is held but latents. features: also keep the mean output of every site at
    every evaluation (float32 while running, half precision in the file where that reaches so far), which EOC needs. policy: keep instead how that
    mean changes, and only where this policy does not compute.
    """

    def __init__(self, gaps: int = 2, features: bool = False, policy: CachePolicy | None = None, branches: bool = True):
        if gaps < 1:
            raise ValueError(f"Statistics: gaps is {gaps}; the shortest reuse distance is 1")
        if features and not branches:
            raise PriorError(
                "mean features are those of branches, and scope is 'whole network': set it to 'branches', or switch mean_features off"
            )
        if policy is not None and policy.level != "branch":
            raise PriorError(
                f"{policy.describe()} does not reuse branches, and mean features are those of branches; connect one "
                "that does, such as FORA Policy with its scope set to branches, or none"
            )
        self.gaps, self.features, self.policy = gaps, features, policy
        self.branches, self.history = branches, gaps if branches else 0
        self._prepared_for = 0
        self.samples = 0
        self._sites: dict[str, None] = {}
        self._sigmas: dict[int, float] = {}
        self._noted: list[Squares] = []  # of the run that is under way
        self._square: dict[tuple, float] = defaultdict(float)  # of outputs; with a gap in its key, of their change
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
        alike = [f for f in past if 1 <= step.index - f.step.index <= self.history and f.value.shape == out.shape]
        keys = (key, *((step.index - f.step.index, *key) for f in alike))
        rows = len(out)
        for of, total in zip(keys, squares(out, *(f.value for f in alike)), strict=True):
            self._noted.append(Squares(of, rows, rows / out.numel(), total))
        if self.features and self.policy is None:
            self._add(self._mean, self._mean_weight, key, streams, out)
        elif self.features and self._reused(step, site):
            for before in (f.value for f in alike if f.step.index == step.index - 1):
                self._add(self._trend, self._trend_weight, key, streams, out, before)

    def _reused(self, step: Step, site: Site) -> bool:
        if self._prepared_for != step.total:
            self._prepared_for, self.policy = step.total, self.policy.prepared(Schedule(step.total))
        return step.index > 0 and self.policy.decide(step, site) is not Action.COMPUTE

    @staticmethod
    def _add(sums: dict, weights: dict, key: tuple[int, str], streams: Streams, *outs: Tensor) -> None:
        """Add the rows of the positive cond: of an output, or of one less another."""
        for lane, own, *other in zip(streams, *(out.chunk(len(streams)) for out in outs), strict=True):
            if lane.cond == 0 and lane.visit == 0:
                total = (own.float() - other[0].float() if other else own.float()).sum(0)
                if key in sums and sums[key].shape != total.shape:
                    raise PriorError(
                        f"the features of {key[1]} have {len(total)} tokens in one positive prompt and {len(sums[key])} in another, and "
                        "no mean: calibrate with prompts of one length, one after the other, or without mean_features"
                    )
                sums[key] = sums[key].to(total.device) + total if key in sums else total
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
        self._read()
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

    def _read(self) -> None:
        """Take in what the run noted: one wait for each device."""
        devices = {noted.total.device for noted in self._noted}
        for own in ([noted for noted in self._noted if noted.total.device == device] for device in devices):
            totals = torch.stack([noted.total for noted in own]).double().cpu().tolist()
            for (key, rows, of_row, _), total in zip(own, totals, strict=True):
                self._square[key] += total * of_row
                self._weight[key] += rows
        self._noted.clear()

    def gram(self, role: str) -> Tensor:
        """(T, T): mean products of the model's derivatives of two evaluations, of positive or negative."""
        return self._gram[role] / self._gram_weight[role]

    def prior(
        self, subject: Subject, shape: tuple[int, ...], seeds: tuple[int, ...], schedule: Sequence[float] = ()
    ) -> Prior:
        """The means over everything observed so far. schedule: the noise levels, where they were given."""
        if not self.samples or not self._schedule:
            raise PriorError("nothing was calibrated: no sampling run was completed")
        sites, steps = list(self._sites), range(len(self._schedule))

        def table(*gap: int) -> Tensor:
            rows = [[self._at((*gap, t, s)) for s in sites] for t in steps]
            return torch.tensor(rows, dtype=torch.float64).reshape(len(steps), len(sites))

        tables = {
            "sigmas": torch.tensor(self._schedule, dtype=torch.float64),
            "power": table(),
            "difference": torch.stack([table(g) for g in range(1, self.gaps + 1)]),
        }
        tables |= {f"gram/{role}": self.gram(role) for role in self._gram}
        tables |= {"schedule": torch.tensor(schedule, dtype=torch.float64)} if schedule else {}
        always = [s for s in sites if all((t, s) in self._mean for t in steps)]
        tables |= {f"mean/{s}": _means(self._mean, self._mean_weight, s, steps) for s in always}
        for site in sites:
            if kept := sorted(t for t, s in self._trend if s == site):
                tables[f"trend/{site}"] = _means(self._trend, self._trend_weight, site, kept)
                tables[f"trend_steps/{site}"] = torch.tensor(kept)
        return Prior(subject, tuple(sites), self.samples, tables, shape, seeds)

    def _at(self, key: tuple) -> float:
        return self._square[key] / self._weight[key] if key in self._square else float("nan")


def _means(sums: dict, weights: dict, site: str, steps: Iterable[int]) -> Tensor:
    """(rows, N, C), in half precision where that reaches as far."""
    means = [sums[t, site] / weights[t, site] for t in steps]
    reaches = all(bool(mean.abs().max() <= torch.finfo(torch.float16).max) for mean in means)
    return torch.stack([(mean.half() if reaches else mean).cpu() for mean in means])
