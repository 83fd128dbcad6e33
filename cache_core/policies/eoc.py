"""EOC: Accelerating Diffusion Transformer via Error-Optimized Cache (arXiv 2501.19243)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ...errors import SettingError
from ..knobs import Knob, Mask, choice
from ..sites import STACK, Action, Feature, Schedule, Site, Step
from .base import Decline
from .correction import Correction

THETAS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""What a search tries; 0.01 is the authors'."""


class Trends(Protocol):
    """What EOC needs of a prior; `priors.trend` makes one."""

    steps: int  # of the sampler
    sigmas: tuple[float, ...]  # noise level of every evaluation

    def knows(self, site: str) -> bool:
        """Whether any trend of this branch was kept."""

    def at(self, step: int, site: str) -> Tensor | None:
        """E = A(step) - A(step - 1), where A is a branch's mean output (N, C); None where it was not kept."""


ROOM = 2**30
"""Bytes of trends that a run brings to its device at most; an eighth of its memory where that is told."""

ROWS = 256
"""Tokens that are converted at once on a CPU: what lies between stays in its caches."""


class Ready:
    """Trends in the dtype and on the device of a run's features, for as long as the run lasts.

    All `uses` (step, site) for which there is room are brought there when the first one is asked for. The others are when
    they are used, and so is every one on a CPU, where what a run uses once it only has to convert once.
    """

    def __init__(self, trends: Trends, uses: Sequence[tuple[int, str]]):
        self.trends, self.uses = trends, uses
        self.nbytes = 0  # held by now
        self._held: dict[tuple[torch.device, torch.dtype], dict[tuple[int, str], Tensor]] = {}

    def at(self, step: int, site: str, like: Tensor) -> Tensor | None:
        """E of one evaluation, in whatever form it is at hand; None where it was not kept."""
        place = (like.device, like.dtype)
        if place not in self._held:
            fitting = self._fitting(*place)
            found = ((use, self.trends.at(*use)) for use in fitting)
            self._held[place] = {use: converted(trend, *place) for use, trend in found if trend is not None}
            self.nbytes += sum(fitting.values())
        held = self._held[place].get((step, site))
        return self.trends.at(step, site) if held is None else held

    def expected(self, device: torch.device, dtype: torch.dtype) -> int:
        """Bytes that will be held of a run whose features are there and of this dtype."""
        return sum(self._fitting(device, dtype).values())

    def clear(self) -> None:
        self._held.clear()
        self.nbytes = 0

    def _fitting(self, device: torch.device, dtype: torch.dtype) -> dict[tuple[int, str], int]:
        """Which uses there is room for, the first ones first, and the bytes that each takes."""
        room, sizes, found = _room(device), {}, {}
        for step, site in self.uses if room else ():
            if site not in sizes:
                trend = self.trends.at(step, site)
                if trend is None:  # an evaluation that the prior does not know
                    continue
                sizes[site] = trend.numel() * dtype.itemsize
            if sizes[site] > room:
                break
            found[step, site] = sizes[site]
            room -= sizes[site]
        return found


def _room(device: torch.device) -> int:
    if device.type == "cpu":
        return 0
    return torch.cuda.get_device_properties(device).total_memory // 8 if device.type == "cuda" else ROOM


def converted(trend: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """In this dtype on this device."""
    if trend.dtype is dtype and trend.device == device:
        return trend
    if device.type != "cpu":  # half as much travels before it is converted
        return trend.to(device, non_blocking=trend.device.type == "cpu").to(dtype)
    if (trend.device, trend.dtype, dtype) != (device, torch.float16, torch.bfloat16):
        return trend.to(device, dtype)
    out = torch.empty_like(trend, dtype=dtype)  # through float, as PyTorch has nothing fast from one half to the other
    for there, here in zip(trend.split(ROWS), out.split(ROWS), strict=True):
        here.copy_(there.float())
    return out


@dataclass(frozen=True)
class EOC(Correction):
    """Reuse a * (1 + theta * E), where a is the newest output that the block used and E the mean trend at this step.

    Reused outputs are kept as corrected, so that consecutive ones compound. The same E serves positive and negative.
    judged: evaluations at which to correct, None for every reused one. The authors' code for 25 % judges nothing; their
    criterion is not public, `priors.trend.judged` is ours.
    """

    trends: Trends = field(repr=False)
    theta: float = 0.01
    judged: tuple[int, ...] | None = None
    ready: Ready | None = field(default=None, init=False, repr=False, compare=False)  # once prepared

    def __post_init__(self):
        super().__post_init__()
        if not math.isfinite(self.theta):
            raise SettingError(f"EOC: theta is {self.theta}; a finite number is meant, such as 0.01")

    @property
    def keeps_reused(self) -> bool:
        return True

    @property
    def aside(self) -> Ready | None:
        return self.ready

    def prepared(self, schedule: Schedule) -> EOC:
        ready = replace(self, base=self.base.prepared(schedule))
        if schedule.limit is None:  # where memory is counted, all of it is for features
            object.__setattr__(ready, "ready", Ready(self.trends, list(ready._uses(schedule))))
        return ready

    def _uses(self, schedule: Schedule) -> Iterator[tuple[int, str]]:
        """Where it will correct, by evaluation and branch."""
        for step in schedule.evaluations[1:]:
            if self.judged is None or step.index in self.judged:
                for site in schedule.sites:
                    if self.trends.knows(site.name) and self.base.decide(step, site) is not Action.COMPUTE:
                        yield step.index, site.name

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        value = past[0].value
        if site == STACK or (self.judged is not None and step.index not in self.judged):
            return value
        there = self.trends.sigmas[step.index : step.index + 1]  # nothing where the prior has fewer evaluations
        if there and not math.isclose(there[0], step.sigma, rel_tol=1e-3):
            raise Decline(
                f"its prior was measured at noise {there[0]:.3g} where this run has {step.sigma:.3g}, at evaluation "
                f"{step.index}; calibrate with the sampler that you sample with"
            )
        trend = self.ready.at(step.index, site.name, value) if self.ready else self.trends.at(step.index, site.name)
        if trend is None:
            if self.base.decide(step, site) is Action.COMPUTE:  # only asked what reuse would have given
                return value
            raise Decline(
                f"its prior holds no trend of {site.name} at evaluation {step.index}; calibrate with the policy that EOC "
                "corrects, or without one"
            )
        if trend.shape != value.shape[1:]:
            there, here = (" x ".join(map(str, shape)) for shape in (trend.shape, value.shape[1:]))
            raise Decline(
                f"its prior holds features of {there} for {site.name} and this run has {here}; calibrate at the size, and "
                "with a prompt of the length, that you sample"
            )
        return torch.addcmul(value, value, converted(trend, value.device, value.dtype), value=self.theta)

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        """Those of base only where trends are known of every step, wherever base then reuses."""
        names = [site.name for site in schedule.sites if self.trends.knows(site.name)][:1]
        whole = all(self.trends.at(t, name) is not None for name in names for t in range(1, schedule.total))
        own = (choice("theta", THETAS, self.theta), Mask("judged", self.base.cached(schedule)))
        return (*own, *(super().knobs(schedule) if whole else ()))

    def objection(self, schedule: Schedule) -> str | None:
        if self.level != "branch":
            return "a prior holds mean outputs of branches only; set the scope of the policy before it to branches"
        if schedule.sites and not any(self.trends.knows(site.name) for site in schedule.sites):
            return "its prior knows none of the branches of this model; calibrate this model"
        if schedule.sigmas and not self._fits(schedule):
            there, here = ((n, f"{sigmas[0]:.3g}") for n, sigmas in ((self.trends.steps, self.trends.sigmas), (schedule.total, schedule.sigmas)))  # fmt: skip
            differ = (
                f"measured at {there[0]} steps from noise {there[1]} and this run has {here[0]} from {here[1]}"
                if there != here
                else "measured at other noise than this run has at its steps"
            )
            return f"its prior was {differ}; calibrate with the settings that you sample with"
        return super().objection(schedule)

    def _fits(self, schedule: Schedule) -> bool:
        """Whether the prior has an evaluation at the beginning of every step."""
        levels = torch.tensor(self.trends.sigmas, dtype=torch.float64)
        begins = torch.tensor(schedule.sigmas[:-1], dtype=torch.float64)
        near = torch.isclose(begins[:, None], levels[None], rtol=1e-3, atol=0.0).any(1)
        return schedule.total == self.trends.steps and bool(near.all())

    def describe(self) -> str:
        return f"EOC {self.theta:g} on {self.base.describe()}"
