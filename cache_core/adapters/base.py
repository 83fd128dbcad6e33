"""What an adapter is, and how its equation takes the place of a block's forward for the length of one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..run import Forward, relative_error
from ..sites import Action, Site

Branch = Callable[[str, Callable[[Tensor], Tensor], Tensor], Tensor]
"""branch(name, fn, x) -> fn(x) or what the cache has for it; `name` is one of the block's branches."""


class Block(NamedTuple):
    """One block of a network: its cacheable branches, and the submodules whose outputs are their pre-gate tensors."""

    module: nn.Module
    sites: dict[str, Site]
    captures: dict[str, nn.Module]


class Adapter(ABC):
    """Knows one architecture's residual equation and nothing about caching."""

    architecture: ClassVar[str]

    @abstractmethod
    def matches(self, network: nn.Module) -> bool:
        """Whether this is the architecture, judged by names and structure."""

    @abstractmethod
    def blocks(self, network: nn.Module) -> list[Block]:
        """Every block in execution order."""

    @abstractmethod
    def forward(self, block: nn.Module, branch: Branch, *args, **kwargs):
        """The block's forward, with each residual branch handed to `branch`."""


def numbered(
    container: str, modules: nn.ModuleList, branches: dict[str, Callable[[nn.Module], nn.Module]]
) -> list[Block]:
    """Blocks of a plain list: branch name -> how to find the submodule that makes its pre-gate output."""
    depth = len(modules)
    return [
        Block(
            module,
            {name: Site(f"{container}.{i}.{name}", i, depth) for name in branches},
            {name: find(module) for name, find in branches.items()},
        )
        for i, module in enumerate(modules)
    ]


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
        actions = {cache.action(site) for site in block.sites.values()}
        foreign = "forward" in block.module.__dict__
        if actions == {Action.COMPUTE} or foreign:
            if cache.run.keeps:
                forwards += [(m, _noting(cache, block.sites[name], m.forward)) for name, m in block.captures.items()]
            if not (cache.run.checked or foreign or cache.run.declined or cache.run.policy.history == 0):
                cache.run.checked = True
                forwards.append((block.module, _checking(adapter, block, cache)))
        else:
            forwards.append((block.module, _equation(adapter, block, cache)))
    with overridden(forwards):
        yield


def _noting(cache: Forward, site: Site, forward: Callable) -> Callable:
    def noted(*args, **kwargs):
        return cache.computed(site, forward(*args, **kwargs))

    return noted


def _equation(adapter: Adapter, block: Block, cache: Forward) -> Callable:
    def branch(name: str, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return cache.branch(block.sites[name], fn, x)

    def cached(*args, **kwargs):
        return adapter.forward(block.module, branch, *args, **kwargs)

    return cached


def _checking(adapter: Adapter, block: Block, cache: Forward) -> Callable:
    """Once per run: the adapter's equation, computing everything, must agree with the host's block."""
    original = block.module.forward

    def checked(*args, **kwargs):
        own = [a.clone() if isinstance(a, Tensor) else a for a in args]  # some hosts update their inputs in place
        named = {k: a.clone() if isinstance(a, Tensor) else a for k, a in kwargs.items()}
        expected = original(*args, **kwargs)
        cache.silent = True
        try:
            found = adapter.forward(block.module, lambda name, fn, x: fn(x), *own, **named)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            cache.run.decline(f"the {adapter.architecture} block of this ComfyUI is not the one known here ({error})")
            return expected
        finally:
            cache.silent = False
        worst = _difference(found, expected)
        if not worst < tolerance(expected):
            cache.run.decline(
                f"the {adapter.architecture} block of this ComfyUI computes something else than expected "
                f"(relative difference {worst:.1e})"
            )
        return expected

    return checked


def _difference(found, expected) -> float:
    pairs = [(found, expected)] if isinstance(expected, Tensor) else list(zip(found, expected, strict=True))
    return max(relative_error(a, b).item() for a, b in pairs if isinstance(b, Tensor))


def tolerance(output) -> float:
    """How far two orders of the same arithmetic may differ, by precision."""
    dtype = output.dtype if isinstance(output, Tensor) else output[0].dtype
    return 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
