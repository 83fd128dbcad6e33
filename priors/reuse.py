"""What reuse costs each branch: the errors by which a memory budget chooses."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..cache_core.policies import CachePolicy
from ..cache_core.sites import Action, Schedule, Site, Step
from .prior import Prior


def errors(prior: Prior, policy: CachePolicy, sites: Iterable[Site]) -> tuple[tuple[str, float], ...]:
    """(branch, relative L2 error), root mean square over the evaluations at which `policy` reuses it.

    Each from as far back as the policy reuses there, or from as far as the prior measured. A correction makes less of
    it, which no prior says. Branches that the prior does not know, or that are never reused, are left out. Raises
    PriorError where no branches were measured.
    """
    prior.need_branches()
    total, count = prior.subject.total, prior.evaluations
    sites = tuple(sites)
    policy = policy.prepared(Schedule(total, sites=sites))
    steps = [Step(t, total, t / count, 0.0) for t in range(count)]
    squares = [prior.reuse_error(gap).square() for gap in range(1, len(prior.tables["difference"]) + 1)]
    found = []
    for site in (s for s in sites if s.name in prior.sites):
        column, known, last = prior.sites.index(site.name), [], 0
        for step in steps:
            if step.index == 0 or policy.decide(step, site) is Action.COMPUTE:
                last = step.index
            else:
                known.append(squares[min(step.index - last, len(squares)) - 1][step.index, column].item())
        if known := [square for square in known if math.isfinite(square)]:
            found.append((site.name, math.sqrt(sum(known) / len(known))))
    return tuple(found)
