"""What a list of policies for the tests of all of them must hold: every one there is."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import isabstract

from priorcache.cache_core import policies
from priorcache.cache_core.policies import CachePolicy


def missing(found: Iterable[CachePolicy | str], *without: str) -> set[str]:
    """Names of policies that are not in a list of them, or of their names, nor among those that it can be without."""
    kinds = (getattr(policies, name) for name in policies.__all__)
    every = {kind.__name__ for kind in kinds if issubclass(kind, CachePolicy) and not isabstract(kind)}
    return every - set(without) - {of if isinstance(of, str) else type(of).__name__ for of in found}
