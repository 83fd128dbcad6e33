"""The arithmetic of forecasting: which steps to compute, along which coordinate, with which coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np

from .sites import Schedule

COORDINATES = ("auto", "sigma", "log snr", "step")

LEFT = 0.6
"""How much of the noise is left half way through the steps of a schedule, from which it is shifted."""

LEAP, GONE = 3.0, 0.02
"""What noise falls by, in one step, where it leaps; and noise below which there is none to speak of."""


def spread(total: int, count: int) -> tuple[int, ...]:
    """`count` of `total` steps at even distances, from the first on."""
    return tuple(math.ceil(i * total / count) for i in range(count))


def widening(total: int, count: int) -> tuple[int, ...]:
    """`count` of `total` steps: the first, then after a gap nearly even ones, of which no gap is shorter than one before.

    The first gap is a seventh of the schedule, five steps at most, where even ones would be shorter: at its beginning all
    is noise, of which a model that predicts noise or velocity says much the same at every step.
    """
    if count < 2:
        return (0,)
    first = min(max(total // count, min(total // 7, 5)), total - count + 1)
    return (0, *accumulate(_gaps(spread(total - first, count - 1)), initial=first))


def front_loaded(total: int, count: int, power: float = 1.45) -> tuple[int, ...]:
    """`count` of `total` steps, closer together at first, with the first and the last.

    No gap is shorter than one before, or more than twice as long as the one before: what goes on from two steps so far is
    led astray by what is wrong between them.
    """
    chosen: list[int] = []
    for i in range(count):
        wanted = round((total - 1) * (i / max(count - 1, 1)) ** power)
        chosen.append(max(wanted, chosen[-1] + 1 if chosen else 0))
    gaps = _gaps([min(step, total - count + i) for i, step in enumerate(chosen)])
    while leaps := [i for i, (before, after) in enumerate(pairwise(gaps)) if after > 2 * before]:
        gaps[leaps[0]] += 1
        gaps[leaps[0] + 1] -= 1
        gaps.sort()
    return tuple(accumulate(gaps, initial=0))


def ending(shape: Callable[[int, int], tuple[int, ...]], total: int, count: int, last: int) -> tuple[int, ...]:
    """`count` of `total` steps in a shape, but for so many last ones, which are all computed."""
    return (*shape(total - last, count - last), *range(total - last, total))


def hastening(sigmas: Sequence[float]) -> bool:
    """Whether most of the noise is taken away in the later steps, as the shift of flow models makes it."""
    return bool(sigmas) and sigmas[len(sigmas) // 2] - sigmas[-1] > LEFT * (sigmas[0] - sigmas[-1])


def leaping(sigmas: Sequence[float]) -> int:
    """How many steps there are, of two, from the one on that takes the last noise away in a leap; 0 where it fades."""
    levels = [max(sigma, GONE) for sigma in sigmas[-3:]]
    leaps = [before >= LEAP * after for before, after in pairwise(levels)]
    return leaps[::-1].index(True) + 1 if any(leaps) else 0


def _gaps(steps: Sequence[int]) -> list[int]:
    """Between steps, the shortest first."""
    return sorted(after - before for before, after in pairwise(steps))


def axis(schedule: Schedule, coordinate: str) -> tuple[float, ...]:
    """The coordinate of every step; without noise levels only the step itself is known."""
    sigmas = [max(s, 1e-6) for s in schedule.sigmas[:-1]]
    if coordinate == "sigma" and sigmas:
        return tuple(sigmas)
    if coordinate == "log snr" and sigmas:
        signal = [max(1 - s, 1e-3) if schedule.flow else 1.0 for s in sigmas]
        return tuple(2 * math.log(a / s) for a, s in zip(signal, sigmas, strict=True))
    return tuple(map(float, range(schedule.total)))


def coefficients(at: float, nodes: Sequence[float], gains: Sequence[float]) -> list[float]:
    """Weights on F0, F1, ... (at nodes u0, u1, ..., newest first) of Newton's formula with gains,

        F(u) = F0 + g1 F[u0, u1] (u - u0) + g2 F[u0, u1, u2] (u - u0) (u - u1) + ...

    F[...] are divided differences. A node that repeats an earlier one ends the sum.
    """
    weights, product = [1.0] + [0.0] * (len(nodes) - 1), 1.0
    for order, gain in zip(range(1, len(nodes)), gains, strict=False):
        if len(set(nodes[: order + 1])) <= order:
            break
        product *= at - nodes[order - 1]
        for i, node in enumerate(nodes[: order + 1]):
            others = [node - other for j, other in enumerate(nodes[: order + 1]) if j != i]
            weights[i] += gain * product / math.prod(others)
    return weights


def resampled(
    computed: Sequence[int], gains: Sequence[tuple[float, ...]], old: Sequence[float], new: Sequence[float]
) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    """A plan for the noise levels `old` (steps + 1,), at equal log sigma among the levels `new`.

    The share of computed steps stays, and so does their density; a step takes the gains of the nearest old one.
    """
    old, new = (-np.log(np.maximum(sigmas[:-1], 1e-6)) for sigmas in (old, new))
    places = np.interp(new, old, range(len(old)))
    count = min(max(2, round(len(computed) * len(new) / len(old))), len(new))
    chosen = resized(computed, len(old), count, places)
    return chosen, tuple(tuple(gains[round(p)]) for p in places) if gains else ()


def resized(computed: Sequence[int], total: int, count: int, places: Sequence[float]) -> tuple[int, ...]:
    """`count` steps, the first among them, as densely here and there as `computed` of `total`.

    places (steps,): where among the old steps each new one stands, in order.
    """
    ranks = np.arange(1, count) * len(computed) / count
    wanted = np.interp(ranks, range(len(computed) + 1), [*computed, total])
    chosen = [0]
    for step in np.interp(wanted, places, range(len(places))):
        chosen.append(max(round(float(step)), chosen[-1] + 1))
    return tuple(min(step, len(places) - count + i) for i, step in enumerate(chosen))
