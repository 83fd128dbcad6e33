"""What an adapter is, and how its equation takes the place of a block's forward for the length of one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..run import Forward, relative_error
from ..sites import Action, Site


ATTENTION_PATCHES = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch")
"""What the host calls, inside a block, on the queries, keys and values or on the attention's output."""


class Branch(Protocol):
    """What an equation hands its residual branches to.

    branch(name, fn, x) -> fn(x), or what the cache has for it; `name` is one of the block's branches. tokenwise says
    that fn treats every token of x (B, N, D) alike and alone, so that it may be called with fewer of them. Equations
    must not write to the result.
    """

    def __call__(self, name: str, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor: ...


class Block(NamedTuple):
    """One block of a network: its equation, its cacheable branches, and the submodules that make their outputs.

    `equation(module, branch, *args, **kwargs)` is the block's forward with each residual branch handed to `branch`.
    Where several submodules make one branch's pre-gate output, theirs are joined along the tokens, in this order.
    """

    module: nn.Module
    equation: Callable
    sites: dict[str, Site]
    captures: dict[str, tuple[nn.Module, ...]]

    @property
    def kind(self) -> tuple:
        """Blocks of one kind stand for each other when equations are compared with the host."""
        return (self.equation, *self.sites)


class Adapter(ABC):
    """Knows one architecture's residual equations and nothing about caching."""

    architecture: ClassVar[str]

    @abstractmethod
    def matches(self, network: nn.Module) -> bool:
        """Whether this is the architecture, judged by names and structure."""

    @abstractmethod
    def blocks(self, network: nn.Module) -> list[Block]:
        """Every block in execution order."""

    def writes(self, kwargs: dict) -> bool:
        """Whether the host's block, called with these, writes into the pre-gate outputs that are noted from it."""
        return False


def numbered(
    container: str,
    modules: nn.ModuleList,
    equation: Callable,
    branches: dict[str, Callable[[nn.Module], nn.Module | tuple[nn.Module, ...] | None]],
    first: int = 0,
    depth: int | None = None,
) -> list[Block]:
    """Blocks of a plain list: branch name -> how to find the submodules that make its pre-gate output.

    None says that this block has no such branch. A network of several lists numbers its blocks through: `first` is the
    position of this list's first block, `depth` the number of all blocks.
    """
    depth = depth or len(modules)
    found = []
    for i, module in enumerate(modules):
        parts = {name: p for name, find in branches.items() if (p := find(module)) is not None}
        found.append(
            Block(
                module,
                equation,
                {name: Site(f"{container}.{i}.{name}", first + i, depth) for name in parts},
                {name: p if isinstance(p, tuple) else (p,) for name, p in parts.items()},
            )
        )
    return found


@contextmanager
def overridden(forwards: list[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Give modules another forward for the length of the context; afterwards nothing is left on them."""
    before = [(module, module.__dict__.get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            module.forward = forward
        yield
    finally:
        for module, own in reversed(before):
            if own is not None:
                module.forward = own
            else:
                module.__dict__.pop("forward", None)


@contextmanager
def installed(adapter: Adapter, network: nn.Module, cache: Forward) -> Iterator[None]:
    """Route one forward of `network` through the cache.

    A block that computes everything runs the host's own forward and only has its pre-gate outputs noted; the adapter's
    equation runs where something is reused. A block whose forward somebody else replaced is always computed.
    """
    forwards: list[tuple[nn.Module, Callable]] = []
    for block in adapter.blocks(network):
        foreign = "forward" in block.module.__dict__
        if foreign or all(cache.action(site) is Action.COMPUTE for site in block.sites.values()):
            if cache.run.keeps:
                forwards.append((block.module, _noting(adapter, block, cache)))
            if not (block.kind in cache.run.checked or foreign or cache.run.declined or cache.run.policy.history == 0):
                cache.run.checked.add(block.kind)
                forwards[-1] = (block.module, _checking(adapter, block, cache, forwards[-1][1]))
        else:
            forwards.append((block.module, _equation(block, cache)))
    with overridden(forwards):
        yield


def _noting(adapter: Adapter, block: Block, cache: Forward) -> Callable:
    """The block's own forward, with the outputs of its branches noted down."""
    original = block.module.forward

    def note(site: Site, parts: list, place: int, forward: Callable, copied: bool) -> Callable:
        def noted(*args, **kwargs):
            out = forward(*args, **kwargs)
            parts[place] = out.clone() if copied else out
            if all(p is not None for p in parts):
                cache.computed(site, parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
            return out

        return noted

    def forward(*args, **kwargs):
        copied = adapter.writes(kwargs)
        forwards = []
        for name, modules in block.captures.items():
            parts = [None] * len(modules)
            forwards += [(m, note(block.sites[name], parts, i, m.forward, copied)) for i, m in enumerate(modules)]
        with overridden(forwards):
            return original(*args, **kwargs)

    return forward


def _equation(block: Block, cache: Forward) -> Callable:
    original = block.module.forward

    def branch(name: str, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor:
        return cache.branch(block.sites[name], fn, x, tokenwise)

    def cached(*args, **kwargs):
        if reason := _objection(kwargs):
            cache.run.decline(reason)
            return original(*args, **kwargs)
        return block.equation(block.module, branch, *args, **kwargs)

    return cached


def _objection(kwargs: dict) -> str | None:
    """Why a block called with these cannot be cached: another node reaches into its attention, unseen by the equation."""
    patches = (kwargs.get("transformer_options") or {}).get("patches") or {}
    names = [name for name in ATTENTION_PATCHES if patches.get(name)]
    return f"another node patches the attention inside the blocks of this model ({', '.join(names)})" if names else None


def computing(name: str, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor:
    """The branch that caches nothing."""
    return fn(x)


def _checking(adapter: Adapter, block: Block, cache: Forward, forward: Callable) -> Callable:
    """Once per run and kind of block: the equation, computing everything, must agree with the host's block."""

    def checked(*args, **kwargs):
        if reason := _objection(kwargs):
            cache.run.decline(reason)
            return forward(*args, **kwargs)
        own = [_copied(a) for a in args]  # some hosts update their inputs in place
        named = {k: _copied(a) for k, a in kwargs.items()}
        expected = forward(*args, **kwargs)
        try:
            found = block.equation(block.module, computing, *own, **named)
        except (TypeError, ValueError, AttributeError, RuntimeError, KeyError, IndexError) as error:
            cache.run.decline(f"the {adapter.architecture} block of this ComfyUI is not the one known here ({error})")
            return expected
        worst = _difference(found, expected)
        if not worst < tolerance(expected):
            cache.run.decline(
                f"the {adapter.architecture} block of this ComfyUI computes something else than expected "
                f"(relative difference {worst:.1e})"
            )
        return expected

    return checked


def _copied(value):
    return value.clone() if isinstance(value, Tensor) else value


def _difference(found, expected) -> float:
    pairs = [(found, expected)] if isinstance(expected, Tensor) else list(zip(found, expected, strict=True))
    return max(relative_error(a, b).item() for a, b in pairs if isinstance(b, Tensor))


def tolerance(output) -> float:
    """How far two orders of the same arithmetic may differ, by precision."""
    dtype = next(o.dtype for o in ([output] if isinstance(output, Tensor) else output) if isinstance(o, Tensor))
    return 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
