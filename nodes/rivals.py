"""Other nodes that would stack on a cache: refused with the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..errors import PriorCacheError

NAMES = re.compile(
    r"(tea|mag|easy|lazy|fb|first_?block_?|block|deep|adaptive|prior)[-_]?cache|cache[-_]?dit|taylor[-_]?seer"
    r"|(?<![a-z])(di|hi|mean|db|ada|faster|omni|speed)cache|wave[-_]?speed|comfyui[-_]spectrum",
    re.IGNORECASE,
)
"""What other caches call themselves, in the name of their pack or of a function that they put on a model."""


class CacheError(PriorCacheError):
    """A model that a cache cannot be attached to, or not beside another one."""


def refuse_rivals(model_options: dict, wrappers: dict[str, dict], ours: str) -> None:
    """Two caches on one model would each take the other's approximation for the model's own output.

    wrappers: kind -> key -> functions, as the host keeps them; those of the key `ours` are left alone.
    """
    holder = model_options.get("transformer_options", {}).get("easycache")  # the host's EasyCache or LazyCache
    found = [getattr(holder, "name", "EasyCache")] if holder else []
    found += [pack for function in _installed(model_options, wrappers, ours) if (pack := _pack(function))]
    if found:
        raise CacheError(f"{found[0]} and PriorCache are both attached to this model: remove one of the two nodes.")


def _installed(model_options: dict, wrappers: dict[str, dict], ours: str) -> Iterator[Callable]:
    """The functions that nodes put around a model."""
    if "model_function_wrapper" in model_options:
        yield model_options["model_function_wrapper"]
    for of_kind in wrappers.values():
        for key, functions in of_kind.items():
            yield from functions if key != ours else ()


def _pack(function: Callable) -> str | None:
    """The pack that a function comes from, if it calls itself a cache. The host names a pack's module by its path."""
    function = getattr(function, "func", function)  # of a functools.partial
    module = re.split(r"[/\\]", getattr(function, "__module__", None) or "")[-1]
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return (module.split(".")[0] or name) if NAMES.search(f"{module}.{name}") else None
