"""The queued prompt as a graph."""

from __future__ import annotations


def upstream(prompt: dict | None, node: str | None, entry: str) -> set[str]:
    """Ids of all nodes that an input depends on, from the queued prompt."""
    seen: set[str] = set()
    link = ((prompt or {}).get(str(node)) or {}).get("inputs", {}).get(entry)
    waiting = [link[0]] if isinstance(link, list) and link else []
    while waiting:
        name = str(waiting.pop())
        if name not in seen and name in prompt:
            seen.add(name)
            waiting += [v[0] for v in prompt[name].get("inputs", {}).values() if isinstance(v, list) and len(v) == 2]
    return seen
