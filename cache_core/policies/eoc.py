"""EOC: Accelerating Diffusion Transformer via Error-Optimized Cache (arXiv 2501.19243)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ...errors import SettingError
from ..courier import Courier
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
    latent: tuple[int, ...]  # shape of one that was sampled, as Schedule.shape; empty where it is not known

    def knows(self, site: str) -> bool:
        """Whether any trend of this branch was kept."""

    def at(self, step: int, site: str) -> Tensor | None:
        """E = A(step) - A(step - 1), where A is a branch's mean output (N, C); None where it was not kept. Threads may ask at once."""


ROOM = 2**30
"""Bytes of trends that a device holds at most; an eighth of its memory where that is told."""

ROWS = 256
"""Tokens that are converted at once on a CPU: what lies between stays in its caches."""


class Ready:
    """Trends in the dtype and on the device of a run's features, for as long as the evaluation that they are of lasts.

    Beside CUDA those of the next evaluation that corrects are on their way meanwhile. Trends for which there is no room are
    brought where they are used, and so is every one on a CPU, where what a run uses once it only has to convert once.
    """

    def __init__(self, trends: Trends, uses: Iterable[tuple[int, str]]):
        self.trends = trends
        self.uses: dict[int, list[str]] = {}  # branches, by evaluation
        for step, site in uses:
            self.uses.setdefault(step, []).append(site)
        self._shapes: dict[str, torch.Size] = {}  # of a branch's trends, which are alike at every evaluation
        self._places: dict[tuple[torch.device, torch.dtype], Place] = {}
        self._told: dict[torch.device, int] = {}  # the last evaluation that each told of

    @property
    def nbytes(self) -> int:
        """Held by now, what is on its way included."""
        return sum(place.nbytes for place in self._places.values())

    def begun(self, step: int, site: str, like: Tensor) -> None:
        """What a branch computed at an evaluation tells where its trend will be needed."""
        if _ahead(like.device) and self._told.get(like.device) != step and self.trends.knows(site):
            self._told[like.device] = step
            self._place(like.device, like.dtype).reach(step)

    def at(self, step: int, site: str, like: Tensor) -> Tensor | None:
        """E of one evaluation, in whatever form it is at hand; None where it was not kept."""
        place = self._place(like.device, like.dtype)
        place.reach(step)
        return place.at(step, site)

    def expected(self, device: torch.device, dtype: torch.dtype) -> int:
        """Bytes that will be held of a run whose features are there and of this dtype."""
        place = Place(self, device, dtype)
        sizes = [sum(place.fitting(step).values()) for step in self.uses]
        if place.ahead and len(sizes) > 1:
            sizes = [one + other for one, other in pairwise(sizes)]
        return max(sizes, default=0)

    def clear(self) -> None:
        for place in self._places.values():
            place.close()
        self._places.clear()

    def shape(self, step: int, site: str) -> torch.Size | None:
        """Of one trend; None where the prior knows none of this branch yet, by this evaluation."""
        if site not in self._shapes and (trend := self.trends.at(step, site)) is not None:
            self._shapes[site] = trend.shape
        return self._shapes.get(site)

    def _place(self, device: torch.device, dtype: torch.dtype) -> Place:
        if (device, dtype) not in self._places:
            self._places[device, dtype] = Place(self, device, dtype)
        return self._places[device, dtype]


class Place:
    """Trends of one device and dtype: of the evaluation that is under way, and where it works `ahead` of the next one."""

    def __init__(self, ready: Ready, device: torch.device, dtype: torch.dtype):
        self.ready, self.uses, self.device, self.dtype = ready, ready.uses, device, dtype
        self.ahead = _ahead(device)
        self._room = _room(device) // (2 if self.ahead else 1)
        self._fitting: dict[int, dict[str, int]] = {}
        self._held: dict[int, dict[str, Tensor]] = {}
        self._errands: dict[int, Future] = {}
        self._courier: Courier | None = None
        self._reached = -1

    @property
    def nbytes(self) -> int:
        return sum(trend.nbytes for held in self._held.values() for trend in held.values())

    def reach(self, step: int) -> None:
        """Drop what came before this evaluation, and send for what comes next."""
        if step == self._reached:
            return
        self._reached = step
        for earlier in [t for t in self._held if t < step]:
            if earlier in self._errands:  # passed by; what it fills must not be used otherwise meanwhile
                self._courier.met(self._errands.pop(earlier))
            del self._held[earlier]
        if self.ahead:
            for wanted in (step, next((t for t in self.uses if t > step), step)):
                if wanted in self.uses and wanted not in self._held:
                    self._send(wanted)

    def at(self, step: int, site: str) -> Tensor | None:
        if step in self._errands:
            found = self._courier.met(self._errands.pop(step))
            sent = self._held[step].items()
            self._held[step] = dict(of for of, was_there in zip(sent, found, strict=True) if was_there)
        held = self._held.setdefault(step, {})
        if site not in held:
            trend = self.ready.trends.at(step, site)
            if trend is None or site not in self.fitting(step):
                return trend
            held[site] = converted(trend, self.device, self.dtype)
        return held[site]

    def fitting(self, step: int) -> dict[str, int]:
        """Of one evaluation the branches that there is room for, the first ones first, and the bytes that each takes."""
        if step not in self._fitting:
            room, found = self._room, {}
            for site in self.uses.get(step, ()) if room else ():
                if (shape := self.ready.shape(step, site)) is None:
                    continue
                size = math.prod(shape) * self.dtype.itemsize
                if size > room:
                    break
                found[site] = size
                room -= size
            self._fitting[step] = found
        return self._fitting[step]

    def close(self) -> None:
        if self._courier is not None:
            self._courier.close()
        self._held.clear()
        self._errands.clear()

    def _send(self, step: int) -> None:
        shapes = {site: self.ready.shape(step, site) for site in self.fitting(step)}
        held = {site: torch.empty(shape, dtype=self.dtype, device=self.device) for site, shape in shapes.items()}
        if self._courier is None:
            self._courier = Courier(self.device)
        errands = [(there, partial(self.ready.trends.at, step, site)) for site, there in held.items()]
        self._held[step], self._errands[step] = held, self._courier.bring(errands)


def _ahead(device: torch.device) -> bool:
    """Whether it takes tensors while it computes."""
    return device.type == "cuda" and torch.cuda.is_available()


def _room(device: torch.device) -> int:
    if device.type == "cpu":
        return 0
    return torch.cuda.get_device_properties(device).total_memory // 8 if device.type == "cuda" else ROOM


def converted(trend: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """In this dtype on this device."""
    if trend.dtype is dtype and trend.device == device:
        return trend
    if device.type != "cpu":  # half as much travels before it is converted
        return trend.to(device, non_blocking=(trend.device.type, device.type) == ("cpu", "cuda")).to(dtype)
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
            raise SettingError(f"EOC: theta is {self.theta}; give a finite number, such as 0.01")

    @property
    def keeps_reused(self) -> bool:
        return True

    @property
    def aside(self) -> Ready | None:
        return self.ready

    def prepared(self, schedule: Schedule) -> EOC:
        ready = replace(self, base=self.base.prepared(schedule))
        if schedule.limit is None:  # where memory is counted, all of it is for features
            object.__setattr__(ready, "ready", Ready(self.trends, ready._uses(schedule)))
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
        if schedule.shape and self.trends.latent and schedule.shape != self.trends.latent:  # tokens lie elsewhere
            there, here = (" x ".join(map(str, shape)) for shape in (self.trends.latent, schedule.shape))
            return f"its prior was measured on latents of {there} and this run has {here}; calibrate at the size that you sample"
        return super().objection(schedule)

    def _fits(self, schedule: Schedule) -> bool:
        """Whether the prior has an evaluation at the beginning of every step."""
        levels = torch.tensor(self.trends.sigmas, dtype=torch.float64)
        begins = torch.tensor(schedule.sigmas[:-1], dtype=torch.float64)
        near = torch.isclose(begins[:, None], levels[None], rtol=1e-3, atol=0.0).any(1)
        return schedule.total == self.trends.steps and bool(near.all())

    def describe(self) -> str:
        return f"EOC {self.theta:g} on {self.base.describe()}"
