"""Fits of a forecast, in closed form: a schedule from a Gram matrix, gains from what each of them moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..cache_core.extrapolation import coefficients


def coherent_cost(gram: Tensor, sigmas: Sequence[float], places: Sequence[float]) -> np.ndarray:
    """Cost (T, T, T + 1) of skipping all steps between j and k after computing i, then j; [j, j, k]: nothing before j.

    With an Euler step, a forecast F^ in place of F moves the end point by (sigma' - sigma) (F^ - F). The cost is the
    mean square of what the skipped steps of one gap move together, forecast linearly in `places`.
    """
    gram, steps, places = gram.double().numpy(), len(gram), np.asarray(places, dtype=float)
    moves = np.diff(np.asarray(sigmas, dtype=float))
    cost = np.full((steps, steps, steps + 1), np.inf)
    for j in range(steps):  # for every i up to j at once: what is moved is a sum over k, and shares of F_j and F_i
        before = places[: j + 1]
        slope = np.divide(1.0, places[j] - before, out=np.zeros(j + 1), where=before != places[j])
        of_j, of_i = np.zeros(j + 1), np.zeros(j + 1)
        skipped, square = np.zeros(steps), 0.0  # the products of that sum with every step, and with itself
        for k in range(j + 1, steps + 1):
            mixed = skipped[j] * of_j + skipped[: j + 1] * of_i + gram[j, : j + 1] * of_j * of_i
            both = gram[j, j] * of_j**2 + gram.diagonal()[: j + 1] * of_i**2
            cost[: j + 1, j, k] = np.maximum(square + 2 * mixed + both, 0.0)
            if k < steps:  # the next gap skips k, too
                square += moves[k] * (moves[k] * gram[k, k] - 2 * skipped[k])
                skipped -= moves[k] * gram[k]
                reach = (places[k] - places[j]) * slope
                of_j += moves[k] * (1 + reach)
                of_i -= moves[k] * reach
    return cost


def cheapest(cost: np.ndarray, count: int) -> tuple[int, ...]:
    """The `count` computed steps of least total cost, exactly: dynamic programming over the last two of them."""
    if count == 1:
        return (0,)
    steps = len(cost)
    best = np.full((steps, steps), np.inf)
    best[0, 1:] = cost[0, 0, 1:steps]
    tables = []
    for _ in range(count - 2):
        table, following = np.zeros((steps, steps), dtype=np.int64), np.full((steps, steps), np.inf)
        for j in range(1, steps - 1):
            through = best[:j, j, None] + cost[:j, j, j + 1 : steps]
            table[j, j + 1 :] = through.argmin(0)
            following[j, j + 1 :] = through.min(0)
        tables.append(table)
        best = following
    last = best + cost[:, :, steps]
    i, j = np.unravel_index(int(last.argmin()), last.shape)
    chosen = [int(j), int(i)]
    for table in reversed(tables):
        chosen.append(int(table[chosen[-1], chosen[-2]]))
    return tuple(sorted(set(chosen) | {0}))


def step_errors(
    gram: Tensor, places: Sequence[float], computed: Sequence[int], gains: Sequence[Sequence[float]]
) -> list[float]:
    """Relative error (T,) of the forecast of every step from those computed before it; 0 where it is computed."""
    gram, errors = gram.double().numpy(), []
    for t in range(len(gram)):
        past = [j for j in reversed(computed) if j < t][:3]
        if t in computed or not past:
            errors.append(0.0)
            continue
        weights = np.array([1.0, *(-w for w in coefficients(places[t], [places[j] for j in past], gains[t]))])
        used = [t, *past]
        errors.append(float(np.sqrt(max(weights @ gram[np.ix_(used, used)] @ weights, 0.0) / max(gram[t, t], 1e-30))))
    return errors


def gauss_newton(slopes: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """The changes (n,) of n numbers that take away most of `residual` (m,), where number i moves it by slopes[:, i].

    min |residual - slopes d|^2 + ridge |d|^2, with ridge in units of the mean square of a column. float64.
    """
    slopes, residual = slopes.double(), residual.double()
    normal = slopes.T @ slopes
    damping = ridge * normal.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.solve(normal + damping * torch.eye(len(normal), dtype=torch.float64), slopes.T @ residual)
