"""The queued prompt as a graph."""

from __future__ import annotations

CACHES = ("PriorCacheApply", "PriorCacheAuto")
"""Nodes that attach a cache; of two in a row, the later one takes the place of the other."""
RESULTS = ("LATENT", "IMAGE", "MASK", "CONDITIONING")
"""What one sampler hands to the next, which need not have the same cache where it has a model of its own."""


def upstream(prompt: dict | None, node: str | None, entry: str) -> set[str] | None:
    """Ids of all nodes that an input depends on, from the queued prompt; None where that is not known."""
    first = _link((prompt or {}).get(str(node)) or {}, entry)
    if first is None:
        return None
    seen: set[str] = set()
    waiting = [first]
    while waiting:
        name, _ = waiting.pop()
        if name not in seen and name in prompt:
            seen.add(name)
            waiting += _links(prompt[name])
    return seen


def sampling(prompt: dict | None, node: str | None, entry: str, trace: str = "trace") -> set[str] | None:
    """Of the nodes that an input depends on, those that could sample with the cache whose trace another input has."""
    found, source = upstream(prompt, node, entry), _link((prompt or {}).get(str(node)) or {}, trace)
    if found is None or source is None or _kind(prompt.get(source[0])) not in CACHES:
        return found

    following: dict[str, list[str]] = {}
    for name in found:
        links = [(before, _carried(prompt.get(before), output)) for before, output in _links(prompt[name])]
        passed = RESULTS if any(kind in ("MODEL", "GUIDER") for _, kind in links) else ()
        for before, kind in links:
            if kind not in passed and _kind(prompt[name]) not in CACHES:
                following.setdefault(before, []).append(name)
    behind, waiting = {source[0]}, [source[0]]
    while waiting:  # down from the cache, into no other one
        fresh = [n for n in following.get(waiting.pop(), ()) if n not in behind]
        behind |= set(fresh)
        waiting += fresh
    return found & behind


def _kind(node: dict | None) -> str | None:
    return (node or {}).get("class_type")


def _carried(node: dict | None, output: int) -> str | None:
    """The type of an output, as its class names it; None where that is not known."""
    import nodes

    types = getattr(nodes.NODE_CLASS_MAPPINGS.get(_kind(node)), "RETURN_TYPES", ())
    kind = types[output] if output < len(types) else None
    return str.__str__(kind) if isinstance(kind, str) else None  # some packs have a type that equals all others


def _links(node: dict) -> list[tuple[str, int]]:
    return [link for entry in node.get("inputs", {}) if (link := _link(node, entry)) is not None]


def _link(node: dict, entry: str) -> tuple[str, int] | None:
    """The node that an input comes from, and which of its outputs; values that are lists are no links."""
    value = node.get("inputs", {}).get(entry)
    linked = isinstance(value, list) and len(value) == 2 and isinstance(value[1], (int, float)) and value[1] >= 0
    return (str(value[0]), int(value[1])) if linked else None
