"""The queued prompt as a graph."""

from __future__ import annotations

CACHES = ("PriorCacheApply", "PriorCacheAuto")
"""Nodes that attach a cache; of two in a row, the later one takes the place of the other."""


def upstream(prompt: dict | None, node: str | None, entry: str) -> set[str] | None:
    """Ids of all nodes that an input depends on, from the queued prompt; None where that is not known."""
    first = _link((prompt or {}).get(str(node)) or {}, entry)
    if first is None:
        return None
    seen: set[str] = set()
    waiting = [first]
    while waiting:
        name = waiting.pop()
        if name not in seen and name in prompt:
            seen.add(name)
            waiting += _links(prompt[name])
    return seen


def sampling(prompt: dict | None, node: str | None, entry: str, trace: str = "trace") -> set[str] | None:
    """Of the nodes that an input depends on, those that could sample with the cache whose trace another input has."""
    found, source = upstream(prompt, node, entry), _link((prompt or {}).get(str(node)) or {}, trace)
    if found is None or source is None or _kind(prompt.get(source)) not in CACHES:
        return found

    following: dict[str, list[str]] = {}
    for name in found:
        for before in _links(prompt[name]):
            following.setdefault(before, []).append(name)
    behind, waiting = {source}, [source]
    while waiting:  # down from the cache, into no other one
        fresh = [n for n in following.get(waiting.pop(), ()) if n not in behind and _kind(prompt[n]) not in CACHES]
        behind |= set(fresh)
        waiting += fresh
    return found & behind


def _kind(node: dict | None) -> str | None:
    return (node or {}).get("class_type")


def _links(node: dict) -> list[str]:
    return [name for entry in node.get("inputs", {}) if (name := _link(node, entry)) is not None]


def _link(node: dict, entry: str) -> str | None:
    """The node that an input comes from; values that are lists are no links."""
    value = node.get("inputs", {}).get(entry)
    return str(value[0]) if isinstance(value, list) and len(value) == 2 else None
