"""What torch.compile is to leave alone."""

from __future__ import annotations

from collections.abc import Callable

import torch


def untraced(function: Callable) -> Callable:
    """Marks a function so that torch.compile does not trace it, while what it calls still compiles.

    `torch.compiler.disable(recursive=False)` keeps only the caller from looking inside: the function's own frame is
    then traced, anew for each of its closures until there are too many, whose guards are looked through at every call.
    """
    skip = getattr(torch._dynamo.decorators, "skip", None)
    return skip(function) if skip else torch.compiler.disable(function, recursive=False)


def eager(function: Callable) -> Callable:
    """The function, in which nothing is traced nor compiled, whatever it calls."""
    return torch.compiler.disable(function)
