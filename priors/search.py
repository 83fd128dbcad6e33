"""Search: the best settings of a policy, judged by nothing but the final latents of sampled pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache_core.knobs import Choice, Mask, Numbers, Steps, turned, value
from ..cache_core.policies import CachePolicy, Full
from ..cache_core.sites import Schedule
from .fit import gauss_newton

REACH = (1, 2)
"""How far a computed step is moved at once, nearest first."""

NUDGE = 0.1
"""By how much a number is changed to see what it moves."""

RIDGES = (0.03, 0.3)

WORTH = 0.98
"""The ratio of errors above which another fit does not pay."""

BLOWN = 1e9
"""The error of pictures that are not finite: worse than any other, and a number that files can hold."""

SLACK = 1 + 1e-6
"""The ratio of costs up to which two are the same."""

HEAD = 4
"""One in how many pictures is sampled first, two at least: a change that loses on these is not sampled on."""

CHANCE = 0.5
"""By how many standard errors of the difference it has to lose there."""


class Outcome(NamedTuple):
    """What sampling the judged pictures, or the first few of them, with a policy gave."""

    latents: Tensor  # (B, ...), final
    cost: float  # in full samplings of the same pictures


class Spent(Exception):
    """The search may not sample any more."""


@dataclass
class Search:
    """Samples pictures under one policy after another, and keeps the best.

    simulate(policy, n): samples the first n pictures. reference: the final latents of all of them in full. schedule: how they
    are sampled. tried, fitted: what was sampled so far. What is found depends on nothing else: a search that was stopped
    at any point and is begun anew with these ends where it would have ended, and what they hold takes no time again.
    """

    simulate: Callable[[CachePolicy, int], Outcome]
    reference: Tensor
    schedule: Schedule
    tried: dict[tuple[str, int], tuple[Tensor, float]] = field(default_factory=dict)  # policy, n -> errors (n,), cost
    fitted: dict[str, tuple[list[list[float]], float]] = field(default_factory=dict)  # policy -> solutions, cost
    spent: float = 0.0
    limit: float = 0.0
    ceiling: float = 0.0
    settings: set[str] = field(default_factory=set)  # what was asked for, tried before or not
    _met: set[tuple[str, int]] = field(default_factory=set)  # what of it was paid for

    def best(
        self, candidates: Sequence[CachePolicy], samplings: float, ceiling: float | None = None, surely: int = 1
    ) -> tuple[CachePolicy, float]:
        """The best policy to be found from these, and its error; the first one, or so many, are judged in any case.

        samplings: what this may cost, in full samplings of the pictures. ceiling: what sampling with a policy may cost
        for it to be taken, in full samplings, too; None for what the first one costs. Error: mean over pictures of the
        relative L2 distance to the reference.
        """
        first = candidates[0]
        self.limit, half = self.spent + samplings, self.spent + samplings / 2
        self._met.clear()
        self.found = (first, self.judged(first))
        self.ceiling = self.cost(first) if ceiling is None else ceiling
        for policy in candidates[1:surely]:
            self._compare(policy)
        try:
            for policy in candidates[surely:]:
                self._consider(policy)
            self._climb(half)
            self._fit()
            self._climb(self.limit)
        except Spent:
            pass
        return self.found

    def cost(self, policy: CachePolicy) -> float:
        """What sampling with a policy that was tried did cost, in full samplings."""
        ways = ((repr(policy), n) for n in (len(self.reference), self._head))
        return next(self.tried[way][1] for way in ways if way in self._met)

    @property
    def _head(self) -> int:
        """How many pictures are sampled first; all where that would be more than half of them."""
        every = len(self.reference)
        head = max(2, every // HEAD)
        return head if 2 * head <= every else every

    def _sampled(self, policy: CachePolicy, pictures: int) -> Tensor:
        """The errors (n,) of the first pictures."""
        key = repr(policy), pictures
        if key not in self.tried:
            latents, cost = self.simulate(policy, pictures)
            errors = self._missing(latents).norm(dim=1)
            self.tried[key] = (errors if (errors < BLOWN).all() else torch.full_like(errors, BLOWN), cost)
        errors, cost = self.tried[key]
        self.spent += 0.0 if key in self._met else cost * pictures / len(self.reference)
        self._met.add(key)
        self.settings.add(key[0])
        return errors

    def judged(self, policy: CachePolicy) -> float:
        """Its error, of all pictures: sampled where it was not yet."""
        return self._sampled(policy, len(self.reference)).mean().item()

    def _behind(self, policy: CachePolicy) -> bool:
        """Whether it loses on the first pictures already, by more than chance."""
        head, every = self._head, len(self.reference)
        if head == every or (repr(policy), every) in self._met:
            return False
        lost = self._sampled(policy, head) - self._sampled(self.found[0], head)
        return bool(lost.mean() > CHANCE * lost.std() / math.sqrt(head))

    @cached_property
    def _first(self) -> Tensor:
        """The first pictures in full, sampled without the others: noise that samplers add, and some conds, depend on how many are sampled."""
        return self.simulate(Full(), self._head).latents

    def _missing(self, latents: Tensor) -> Tensor:
        """(n, elements): what pictures lack to the reference, in units of its norm."""
        exact = (self.reference if len(latents) == len(self.reference) else self._first).double().flatten(1)
        return (exact - latents.double().flatten(1)) / exact.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def _consider(self, policy: CachePolicy) -> bool:
        """Judge one more; whether it is the best so far of those below the ceiling."""
        if self.spent >= self.limit:
            raise Spent
        if self._behind(policy):
            return False
        if self.spent >= self.limit:
            raise Spent
        return self._compare(policy)

    def _compare(self, policy: CachePolicy) -> bool:
        error = self.judged(policy)
        if better := error < self.found[1] and self.cost(policy) <= SLACK * self.ceiling:
            self.found = (policy, error)
        return better

    def _opened(self) -> CachePolicy:
        return self.found[0].opened(self.schedule)

    def _climb(self, limit: float) -> None:
        """Make one small change after another, each as often as it helps, then two at once, until nothing does."""
        while self._changed(limit) or self._traded(limit):
            pass

    def _changed(self, limit: float) -> bool:
        """Whether any small change helped."""
        helped = False
        for change in changes(self._opened(), self.schedule):
            if self.spent >= limit:
                return False
            while (policy := change(self._opened())) and self._consider(policy):
                helped = True
        return helped

    def _traded(self, limit: float) -> bool:
        """Whether it helped to save by one small change and to spend by another, as often as the ceiling allows.

        Asked where no change alone helps, so that what each costs is known.
        """
        begin, before = self._opened(), self.found[1]
        tried = [(change, policy) for change in changes(begin, self.schedule) if (policy := change(begin))]
        costs = {change: self.cost(policy) for change, policy in tried if (repr(policy), self._head) in self._met}
        own = self.cost(self.found[0])
        cheaper = [change for change, cost in costs.items() if SLACK * cost < own]
        dearer = [change for change, cost in costs.items() if cost > SLACK * own]
        for save, spend in product(cheaper, dearer):
            policy, passed = spend(save(begin)), {repr(begin)}
            while policy and repr(policy) not in passed and self.spent < limit:  # what is toggled twice is as it was
                passed.add(repr(policy))
                self._consider(policy)
                policy = spend(policy) if self.cost(policy) <= SLACK * self.ceiling else None
        return self.found[1] < before

    def _fit(self) -> None:
        """Set all numbers at once by Gauss-Newton, again while it pays."""
        before = float("inf")
        while self.found[1] < WORTH * before:
            before = self.found[1]
            for knob in self._opened().knobs(self.schedule):
                if isinstance(knob, Numbers):
                    for policy in self._solutions(self._opened(), knob):
                        self._consider(policy)

    def _solutions(self, policy: CachePolicy, knob: Numbers) -> list[CachePolicy]:
        """The policy with its numbers fitted to every second picture, once per ridge; nothing where means are short.

        Where they do not suffice for all entries, only those of the first place in a row are fitted.
        """
        tries = len(RIDGES) * (1 + self._head / len(self.reference))
        affordable = int((self.limit - self.spent) / self.cost(self.found[0]) - tries) - 1
        first = [entry for entry in knob.entries if entry[1] == 0]
        entries = next((e for e in (list(knob.entries), first) if 0 < len(e) <= affordable), None)
        if entries is None:
            return []
        rows = [list(row) for row in value(policy, knob.name) or [knob.start] * self.schedule.total]
        key = f"{policy!r} {knob.name} {len(entries)}"
        if key not in self.fitted:
            base, cost = self.simulate(policy, len(self.reference))
            begun, slopes = self.spent, []
            for step, place in entries:
                moved = turned(policy, knob.name, _moved_by(rows, [(step, place)], [NUDGE]))
                outcome = self.simulate(moved, len(self.reference))
                slopes.append(((outcome.latents - base).double() / NUDGE).flatten(1))
                cost += outcome.cost
                self.spent = begun + cost  # as it goes: whoever samples tells of it
            scale = self.reference.double().flatten(1).norm(dim=1).clamp_min(1e-12)[:, None]
            columns = torch.stack([(slope / scale)[::2].flatten() for slope in slopes], 1)
            residual = self._missing(base)[::2].flatten()
            ridges = RIDGES if columns.isfinite().all() else ()
            self.fitted[key] = ([gauss_newton(columns, residual, ridge).tolist() for ridge in ridges], cost)
        else:
            self.spent += self.fitted[key][1]
        solutions, _ = self.fitted[key]
        return [turned(policy, knob.name, _moved_by(rows, entries, by)) for by in solutions]


def _moved_by(
    rows: list[list[float]], entries: list[tuple[int, int]], by: list[float]
) -> tuple[tuple[float, ...], ...]:
    rows = [list(row) for row in rows]
    for (step, place), amount in zip(entries, by, strict=True):
        rows[step][place] = round(rows[step][place] + amount, 4)
    return tuple(map(tuple, rows))


Change = Callable[[CachePolicy], CachePolicy | None]


def changes(policy: CachePolicy, schedule: Schedule) -> Iterator[Change]:
    """Every small change of the discrete knobs of a policy that was opened; one gives None where it cannot be made."""
    for knob in policy.knobs(schedule):
        if isinstance(knob, Choice):
            yield from (_chosen(knob, by) for by in (1, -1))
        elif isinstance(knob, Mask):
            yield from (_toggled(knob, step) for step in knob.steps)
        elif isinstance(knob, Steps):
            places, total = range(1, len(value(policy, knob.name))), schedule.total
            yield from (_moved(knob, place, sign * by, total) for by in REACH for place in places for sign in (1, -1))


def _moved(knob: Steps, place: int, by: int, steps: int) -> Change:
    def change(policy: CachePolicy) -> CachePolicy | None:
        chosen = list(value(policy, knob.name))
        chosen[place] += by
        if not 0 < chosen[place] < steps or len(set(chosen)) < len(chosen):
            return None
        return turned(policy, knob.name, tuple(sorted(chosen)))

    return change


def _toggled(knob: Mask, step: int) -> Change:
    def change(policy: CachePolicy) -> CachePolicy:
        now = value(policy, knob.name)
        return turned(policy, knob.name, tuple(sorted({step} ^ set(knob.steps if now is None else now))))

    return change


def _chosen(knob: Choice, by: int) -> Change:
    def change(policy: CachePolicy) -> CachePolicy | None:
        place = knob.options.index(value(policy, knob.name)) + by
        return turned(policy, knob.name, knob.options[place]) if 0 <= place < len(knob.options) else None

    return change
