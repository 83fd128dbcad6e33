"""Corrector: a computed step shows what the forecasts before it were off by, and makes that good in its own output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from .extrapolation import coefficients

SAMPLERS = ("euler", "dpmpp_2m")
"""Those whose step is known here; ddim is euler."""

DEGREES = {"linear": 1, "quadratic": 2}


class Corrector:
    """The second half of a predictor-corrector method, for a sampler whose predictor skipped evaluations.

    Steps k between two computed ones, a and i, were sampled along forecasts f[k] of the derivative F = (x - denoised) / sigma.
    With F[i] at hand, the same steps are told better by interpolation, from F[i], F[a] and, where the degree is 2, the
    computed one before: what x would be by now differs from what it is by d, which is linear in all of these. F[i] was
    itself evaluated d away from there, whose denoised picture is taken to lie follows * d from the one that was computed.
    What is returned for i takes the sampler to where it would have come; no evaluation is added.

    Works on guided outputs, in the order of sampling. places: the coordinate of every step; sigmas (steps + 1,) must fall.
    follows: by how much of a displacement of x the denoised picture is taken to move.
    """

    def __init__(self, places: Sequence[float], sigmas: Sequence[float], degree: int, sampler: str, follows: float):
        self.places, self.sigmas, self.degree, self.follows = places, sigmas, degree, follows
        self.ratios = [after / before for before, after in pairwise(sigmas)]
        self.carries = [0.0] * len(self.ratios)  # the share of dpmpp_2m's line through its last two outputs
        if sampler == "dpmpp_2m":
            logs = [-math.log(ratio) if ratio else math.inf for ratio in self.ratios]
            self.carries[1:] = [h / (2 * last) if math.isfinite(h) else 0.0 for last, h in pairwise(logs)]
        self.several = any(self.carries)
        self.held = degree + (3 if self.several else 1)  # tensors, at most
        self.clear()

    def clear(self) -> None:
        self.known: list[tuple[int, Tensor]] = []  # computed steps and their F, newest first
        self.gap: list[int] = []  # skipped steps since
        self.drift: Tensor | float = 0.0  # of x by these forecasts
        self.off: Tensor | float = 0.0  # of the last denoised picture by them
        self.excess: Tensor | float = 0.0  # of the last output over the denoised picture that is believed in

    @property
    def nbytes(self) -> int:
        held = [F for _, F in self.known] + [self.drift, self.off, self.excess]
        return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))

    def __call__(self, index: int, x: Tensor, denoised: Tensor, computed: bool) -> Tensor:
        """What to return to the sampler at this step for what was computed or forecast of it, both like x."""
        sigma, ratio, carry = self.sigmas[index], self.ratios[index], self.carries[index]
        derivative = (x.float() - denoised.float()) / sigma
        out = believed = denoised
        if computed and self.gap and len(self.known) == self.degree:  # the first gaps have too little behind them
            shift, error = self._found(index, derivative)
            believed = denoised + self.follows * shift
            derivative = derivative + (1 - self.follows) / sigma * shift
            out = believed + ratio / ((1 - ratio) * (1 + carry)) * shift + carry / (1 + carry) * (self.excess - error)
        elif carry and isinstance(self.excess, Tensor):
            out = denoised + carry / (1 + carry) * self.excess
        self.excess = 0.0 if out is denoised else out - believed
        if computed:
            self.known = [(index, derivative), *self.known][: self.degree]
            self.gap, self.drift, self.off = [], 0.0, 0.0
        else:
            self.gap.append(index)
            off = self.drift + sigma * derivative
            self.drift = self._stepped(index, self.drift, off, self.off)
            self.off = off if self.several else 0.0
        return out.to(denoised.dtype)

    def _stepped(self, index: int, x, denoised, before):
        """The sampler's own step, from the denoised picture and the one before it."""
        ratio, carry = self.ratios[index], self.carries[index]
        return ratio * x + (1 - ratio) * ((1 + carry) * denoised - carry * before)

    def _found(self, index: int, derivative: Tensor) -> tuple[Tensor, Tensor | float]:
        """(d, the same of the last denoised picture where the sampler looks back at it): how far sampling went astray.

        Both are sums: weights on the derivatives, a share of d itself, and what was summed up while forecasting.
        """
        nodes = [(index, derivative), *self.known]
        at = [self.places[node] for node, _ in nodes]
        x, before = [0.0] * (len(nodes) + 1), [0.0] * (len(nodes) + 1)  # weights, and the share of d at last
        for k in self.gap:
            weights = coefficients(self.places[k], at, (1.0,) * self.degree)
            told = [*weights, weights[0] * (1 - self.follows) / self.sigmas[index]]
            off = [own - self.sigmas[k] * of for own, of in zip(x, told, strict=True)]
            x, before = [self._stepped(k, *values) for values in zip(x, off, before, strict=True)], off
        found = (self.drift + _sum(x, nodes)) / (1 - x[-1])
        return found, self.off + _sum(before, nodes) + before[-1] * found if self.several else 0.0


def _sum(weights: Sequence[float], nodes: Sequence[tuple[int, Tensor]]) -> Tensor:
    return sum(weight * F for weight, (_, F) in zip(weights, nodes, strict=False))
