"""The queued prompt as a graph."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_execution.graph import DynamicPrompt

    from ..cache_core.trace import RunTrace, Trace

CACHES = ("PriorCacheApply", "PriorCacheAuto")
"""Nodes that attach a cache; of two in a row, the later one takes the place of the other."""
RESULTS = ("LATENT", "IMAGE", "MASK", "CONDITIONING")
"""What one sampler hands to the next, which need not have the same cache where it has a model of its own."""


def sampled(trace: Trace, hidden, entry: str, source: str = "trace") -> list[RunTrace]:
    """The runs of a trace, which an input of a node has, that led to what another input has; all, where that is not known.

    hidden: of the node, its id, the prompt, and the prompt as nodes unrolled it while it ran.
    """
    nodes = sampling(hidden.prompt, hidden.unique_id, entry, source)
    if nodes is not None:  # all of them have run; what is gone now would come back where nothing is unrolled
        trace.forget(run for run in trace.of_nodes(nodes) if _gone(hidden.dynprompt, run.origin[1]))
    return [run for run in trace.of_nodes(nodes) if nodes is None or _as_now(hidden.dynprompt, run)]


def _as_now(prompt: DynamicPrompt, run: RunTrace) -> bool:
    """Whether a run is what this prompt asks for. With `--cache-lru` the host takes a latent from its cache that an earlier
    prompt made, where the trace has only what a later one did."""
    now = recipe(prompt, run.origin[1])
    return not (now and run.recipe) or now == run.recipe


def recipe(prompt: DynamicPrompt, node: str) -> str:
    """A digest of what a node and all nodes before it are given, whatever their ids; "" where that is not known.

    Files behind names, and tensors that an unrolled node is given, do not come into it.
    """
    found: dict[str, str] = {}
    waiting = [node] if prompt.has_node(node) else []
    begun: set[str] = set()
    while waiting:
        own = prompt.get_node(waiting[-1])
        inputs = dict(own.get("inputs", {}))
        links = {entry: link for entry in inputs if (link := _link(own, entry)) and prompt.has_node(link[0])}
        before = [name for name, _ in links.values() if name not in found]
        if before and waiting[-1] not in begun:
            begun.add(waiting[-1])
            waiting += before
            continue
        inputs |= {entry: (found.get(name), output) for entry, (name, output) in links.items()}
        try:
            text = json.dumps([_kind(own), inputs], sort_keys=True, default=lambda value: type(value).__name__)
        except (TypeError, ValueError, RecursionError):  # an unrolled node may be given anything
            return ""
        found[waiting.pop()] = hashlib.sha256(text.encode()).hexdigest()
    return found.get(node, "")


def _gone(prompt: DynamicPrompt, node: str) -> bool:
    """Whether a node is of a round that its loop had in an earlier prompt, and has no longer.

    A loop that was not unrolled in this prompt, since the host had kept its result, has all of its rounds.
    """
    unrolled = {prompt.get_real_node_id(name) for name in prompt.all_node_ids() if prompt.get_parent_node_id(name)}
    return not prompt.has_node(node) and node.startswith(tuple(f"{loop}." for loop in unrolled))


def sampling(prompt: dict | None, node: str | None, entry: str, trace: str = "trace") -> set[str] | None:
    """Ids of the nodes that an input depends on and that could sample with the cache whose trace another input has.

    All that it depends on, where the trace comes from a node that is none of ours; None where that is not known.
    """
    own = (prompt or {}).get(str(node)) or {}
    first, source = _link(own, entry), _link(own, trace)
    if first is None:
        return None
    found: set[str] = set()
    following: dict[str, list[str]] = {}
    waiting = [first[0]]
    while waiting:
        name = waiting.pop()
        if name in found or name not in prompt:
            continue
        found.add(name)
        waiting += [before for before, _ in _links(prompt[name])]
        for before in _handed_on(prompt, prompt[name]):
            following.setdefault(before, []).append(name)
    if source is None or _kind(prompt.get(source[0])) not in CACHES:
        return found
    behind: set[str] = set()
    waiting = [source[0]]
    while waiting:  # down from the cache
        name = waiting.pop()
        if name not in behind:
            behind.add(name)
            waiting += following.get(name, ())
    return found & behind


def _handed_on(prompt: dict, node: dict) -> list[str]:
    """The nodes before this one whose cache it may have or pass on; of none, where it attaches another."""
    if _kind(node) in CACHES:
        return []
    links = [(before, _carried(prompt.get(before), output)) for before, output in _links(node)]
    results = RESULTS if any(kind in ("MODEL", "GUIDER") for _, kind in links) else ()
    return [before for before, kind in links if kind not in results]


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
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        return None
    return (value[0], int(value[1])) if isinstance(value[1], (int, float)) and value[1] >= 0 else None
