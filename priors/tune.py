"""Tune: what a search sets of any policy's own settings, and what that brought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..cache_core.knobs import value
from ..cache_core.policies import CachePolicy
from ..cache_core.sites import Schedule
from ..errors import SettingError
from .search import BLOWN, SLACK, Search, changes


@dataclass(frozen=True)
class Tuning:
    """A policy before and after; what it did on the judged pictures, and what that took of a full sampling."""

    before: CachePolicy  # opened
    after: CachePolicy  # the given one itself where nothing better was found
    schedule: Schedule
    errors: tuple[float, float]  # before and after; mean over pictures of the relative L2 distance of the final latent
    costs: tuple[float, float]  # of the branches' operations
    pictures: int
    samplings: float  # that the search cost
    tried: int
    judged: tuple[float, float] | None = None  # errors of other pictures, of the given one and of what was found

    @property
    def settings(self) -> dict[str, tuple]:
        """Of every knob, by the policy that has it and its name: what it was and what it became."""
        after = self.after.opened(self.schedule)
        knobs = (*self.before.knobs(self.schedule), *after.knobs(self.schedule))
        return {
            _named(self.before, knob.name): (value(self.before, knob.name), value(after, knob.name)) for knob in knobs
        }


def tuned(
    search: Search,
    policy: CachePolicy,
    samplings: float,
    ceiling: float | None = None,
    judge: Callable[[], Search] | None = None,
) -> Tuning:
    """The policy with the best settings to be found, which cost no more than its own, or than `ceiling`.

    judge: gives other pictures, on which what was found has to be better, too. Raises SettingError where it leaves nothing to set, computes everything, or costs more than the ceiling itself.
    """
    opened = policy.opened(search.schedule)
    if not any(change(opened) for change in changes(opened, search.schedule)):
        raise SettingError(
            f"{policy.describe()} leaves nothing to tune; give one that skips steps of its choice, such as FORA, GOC, EOC, "
            "DuCa, ToCa or Taylor"
        )
    _, before = search.best([policy], 0, ceiling)
    cost = search.cost(policy)
    if cost >= 1:
        raise SettingError(f"{policy.describe()} computed everything on these pictures, so there is nothing to tune")
    if ceiling is not None and cost > SLACK * ceiling:
        raise SettingError(
            f"{policy.describe()} already costs {cost:.3f} of a full sampling, more than the ceiling of {ceiling:g}; raise "
            "the ceiling, or set it to 0 for what the policy costs"
        )
    after, error = search.best([policy], max(samplings - 2 * cost, 0.0) if judge else samplings, ceiling)
    if error >= BLOWN:
        raise SettingError(
            f"{policy.describe()} gives pictures that are not finite, and so does all that was tried around it"
        )
    other = judge() if judge else None
    judged = (other.judged(policy), other.judged(after)) if other else None
    if judged and judged[1] >= judged[0]:
        after, error = policy, before
    costs = (cost, search.cost(after))
    spent = search.spent - cost + (other.spent if other else 0.0)  # the given one was judged twice and sampled once
    return Tuning(
        opened,
        after,
        search.schedule,
        (before, error),
        costs,
        len(search.reference),
        spent,
        len(search.settings),
        judged,
    )


def told(tuning: Tuning) -> str:
    """What it brought, and a line for every knob."""
    (before, after), costs = tuning.errors, tuning.costs
    better = f"{1 - after / before:.0%} less" if after < before else "nothing better was found"
    other = "On other pictures the error is somewhat larger than after tuning on these."
    if tuning.judged:
        given, found = tuning.judged
        kept = f"{1 - found / given:.0%} less" if found < given else "so that the given settings are kept"
        other = f"On as many other pictures: {given:.4f} before, {found:.4f} with what was found, {kept}."
    lines = [
        f"{tuning.after.describe()}. Error of the final latent on {tuning.pictures} "
        f"picture{'s'[: tuning.pictures > 1]}: {before:.4f} before, {after:.4f} after ({better}). Computed of a full "
        f"sampling: {costs[0]:.1%} before, {costs[1]:.1%} after.",
        *(
            f"{name}: {_shown(was)}" + (" (kept)" if was == now else f" -> {_shown(now)}")
            for name, (was, now) in tuning.settings.items()
        ),
        f"The search cost {tuning.samplings:.1f} samplings and tried {tuning.tried} settings. {other}",
    ]
    return "\n".join(lines)


def _named(policy: CachePolicy, name: str) -> str:
    """ "base.eta" -> "GOC eta"."""
    path, _, field = name.rpartition(".")
    return f"{type(value(policy, path) if path else policy).__name__} {field}"


def _shown(setting) -> str:
    if setting is None:
        return "all"
    if isinstance(setting, tuple):
        return ", ".join(map(str, setting)) or "none"
    return f"{setting:g}" if isinstance(setting, float) else str(setting)
