"""What EOC (arXiv 2501.19243) takes from a prior: how far the mean output of a branch moves at a step."""

from __future__ import annotations

import torch
from torch import Tensor

from .prior import Prior, PriorError


class Trend:
    """E(t) = A(t) - A(t - 1) of every branch whose mean output A a prior holds; raises PriorError when it holds none.

    From the tables "trend/<site>" where the prior has them, else from "mean/<site>". Compared by identity. Which half of
    guidance the authors averaged is not public: A is of positive rows, of whatever pictures were calibrated.
    """

    def __init__(self, prior: Prior):
        self.tables = prior.tables
        self.steps, self.sigmas = prior.subject.total, tuple(prior.tables["sigmas"].tolist())
        self.latent = prior.shape
        if not any(self.knows(site) for site in prior.sites):
            raise PriorError("the prior has no mean features; calibrate again with mean_features switched on")
        self._row = {
            name.removeprefix("trend_steps/"): {t: k for k, t in enumerate(table.tolist())}
            for name, table in prior.tables.items()
            if name.startswith("trend_steps/")
        }

    def knows(self, site: str) -> bool:
        return f"trend/{site}" in self.tables or f"mean/{site}" in self.tables

    def at(self, step: int, site: str) -> Tensor | None:
        """E of one evaluation (N, C), where it is known."""
        if site in self._row:
            row = self._row[site].get(step)
            return None if row is None else self.tables[f"trend/{site}"][row]
        mean = self.tables.get(f"mean/{site}")
        return mean[step].float() - mean[step - 1].float() if mean is not None and 0 < step < len(mean) else None


def judged(prior: Prior, least: float) -> tuple[int, ...]:
    """The evaluations at which reusing the one before costs `least` or more: relative L2 error, mean over branches."""
    cost = prior.reuse_error(1).nanmean(1)
    return tuple(torch.nonzero(cost >= least).flatten().tolist())
