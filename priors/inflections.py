"""Where features turn around: GOC (arXiv 2503.05156) corrects nothing there.

The authors publish their constant, not their criterion; this one follows their words, that the gradient must not be
applied where its direction is inconsistent. It needs no table of its own: with d(t) = f(t) - f(t - 1), the mean of
d(t) d(t - 1) is half of |f(t) - f(t - 2)|^2 - |d(t)|^2 - |d(t - 1)|^2, and "difference" holds all three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .prior import Prior


def consistency(prior: Prior) -> Tensor:
    """Cosine (T,) between the change at an evaluation and the one before it, mean over branches; nan where unknown.

    Raises PriorError when branches, or changes over two evaluations, were not measured.
    """
    prior.need_branches()
    prior.reuse_error(2)
    one, two = prior.tables["difference"][:2].double()
    before = torch.full_like(one, torch.nan)
    before[1:] = one[:-1]
    return ((two - one - before) / 2 / (one * before).sqrt().clamp_min(1e-30)).nanmean(1)


def inflections(prior: Prior, least: float = 0.0) -> tuple[int, ...]:
    """The evaluations whose change does not continue that of the one before: consistency at or below `least`."""
    return tuple(torch.nonzero(consistency(prior) <= least).flatten().tolist())
