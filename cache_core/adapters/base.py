"""What an adapter is: the residual equations of one architecture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from ..sites import STACK, Site
from .marks import Mark, Marks


class Branch(Protocol):
    """What an equation hands its residual branches to.

    branch(name, fn, x) -> fn(x), or what the cache has for it; `name` is one of the block's branches. tokenwise says
    that fn treats every token of x (B, N, D) alike and alone, so that it may be called with fewer of them. Equations
    must not write to the result.
    """

    def __call__(self, name: str, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor: ...


NO_OPTIONS: dict = {}
"""The transformer_options of a block that is given none, as in the host's own signatures; nobody writes to it."""


def returns(*streams: str, picture: str | None = None) -> Callable[[Callable], Callable]:
    """Says of an equation which of its arguments it returns changed, in this order; `picture` is one of them, or the last.

    Blocks are skipped by returning these as they came.
    """

    def said(equation: Callable) -> Callable:
        equation.returns, equation.picture = streams, picture or streams[-1]
        return equation

    return said


class Block(NamedTuple):
    """One block of a network: its equation, its cacheable branches, and the submodules that make their outputs.

    `equation(module, branch, *args, **kwargs)` is the block's forward with each residual branch handed to `branch`;
    `returns` says what it hands to the next block.
    Where several submodules make one branch's pre-gate output, theirs are joined along the tokens, in this order; one whose
    output is several branches side by side (an MLP over text and picture that are gated apart) has no branch of its own yet.
    `marks` is what can be noted of the tokens of a branch: (what, branch) -> how.
    """

    module: nn.Module
    equation: Callable
    sites: dict[str, Site]
    captures: dict[str, tuple[nn.Module, ...]]
    marks: dict[tuple[str, str], Mark] = {}  # noqa: RUF012 - nobody writes to it

    @property
    def kind(self) -> tuple:
        """Blocks of one kind stand for each other when equations are compared with the host."""
        return (self.equation, *self.sites)


class Adapter(ABC):
    """Knows one architecture's residual equations and nothing about caching."""

    architecture: ClassVar[str]
    prefetches: ClassVar[bool] = False
    """Whether the host's network brings the weights of a block to the device while the block before it computes."""

    @abstractmethod
    def matches(self, network: nn.Module) -> bool:
        """Whether this is the architecture, judged by names and structure."""

    @abstractmethod
    def blocks(self, network: nn.Module) -> list[Block]:
        """Every block in execution order."""

    def writes(self, kwargs: dict) -> bool:
        """Whether the host's block, called with these, writes into the pre-gate outputs that are noted from it."""
        return False

    def heeds(self, patch: Callable) -> bool:
        """Whether a patch inside a block is known to keep nothing from call to call, and the equation to call it."""
        return False

    def rows(self, hidden: Tensor) -> Tensor:
        """What a block of the host's hands on, or a branch puts out, as (B, N, D); several streams as one."""
        return hidden

    def hidden(self, rows: Tensor, like: Tensor) -> Tensor:
        """What a block of the host's would hand on, in the form of `like`, from its `rows`."""
        return rows.view_as(like)

    def references(self, network: nn.Module, cond: dict) -> Iterable[Tensor]:
        """The latents that come along with a picture, (B, C, *space), in a cond of the host's."""
        return cond.get("reference_latents") or ()

    def text(self, cond: dict) -> int:
        """Tokens of the prompt in a cond of the host's."""
        embedding = cond.get("cross_attn")
        return embedding.shape[1] if isinstance(embedding, Tensor) and embedding.ndim == 3 else 0

    def sizes(self, network: nn.Module, latents: list[tuple[int, ...]], text: int) -> dict[Site, tuple[int, int]]:
        """(tokens, width) of every branch's output and of STACK for one row, told before sampling to declare memory.

        latents: (C, *space) of the picture, or of each of its parts, and of every reference that comes along with it.
        """
        image, text = self.lengths(network, self.image(network, latents), text)
        blocks = self.blocks(network)
        found = {
            site: (self.tokens(block, name, image, text), width(block.captures[name][0]))
            for block in blocks
            for name, site in block.sites.items()
        }
        last = [found[site] for name, site in blocks[-1].sites.items() if not name.startswith("txt_")]
        return found | {STACK: min(last)}  # a branch that both streams share has more tokens than the picture

    def flops(self, network: nn.Module, latents: list[tuple[int, ...]], text: int) -> dict[Site, int]:
        """Operations that computing every branch takes for one row, 2 per multiply-add; STACK: all of them.

        Those of its matrices and of its attention, which are nearly all there is; told before sampling, as `sizes`.
        """
        image, text = self.lengths(network, self.image(network, latents), text)
        found = {
            site: self._flops(block, name, image, text)
            for block in self.blocks(network)
            for name, site in block.sites.items()
        }
        return found | {STACK: sum(found.values())}

    def _flops(self, block: Block, name: str, image: int, text: int) -> int:
        tokens, keys = self.tokens(block, name, image, text), self.keys(name, image, text)
        if not tokens:
            return 0
        parts = self.work(block, name)
        lengths = (text, image) if len(parts) > 1 else (tokens,)
        linear = sum(
            layer.in_features * layer.out_features * (length if keys is None or not of_keys(place) else keys)
            for modules, length in zip(parts, lengths, strict=True)
            for module in modules
            for place, layer in module.named_modules()
            if hasattr(layer, "out_features")
        )
        attention = 2 * tokens * (tokens if keys is None else keys) * self.attended(block, name)
        return 2 * (linear + attention * name.endswith(("attn", "attn2", "single")))

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules that run when a branch is computed; where it joins two parts, those of each, in that order."""
        return tuple((module,) for module in block.captures[name])

    def keys(self, name: str, image: int, text: int) -> int | None:
        """Tokens that a branch's keys and values are made of, where these are not its own."""
        return text if name in CROSSING else None

    def attended(self, block: Block, name: str) -> int:
        """Channels of the values that a branch attends to, of all heads together."""
        return width(block.captures[name][-1])

    def image(self, network: nn.Module, latents: list[tuple[int, ...]]) -> int:
        """Tokens of all these latents; where they are of several streams, what `lengths`, `tokens` and `keys` tell apart."""
        return sum(self.patches(network, latent) for latent in latents)

    def patches(self, network: nn.Module, latent: tuple[int, ...]) -> int:
        """Tokens of a latent (C, *space); a patch with fewer dims than that covers its last ones."""
        size = getattr(network, "patch_size", 1)
        space = latent[1:]
        size = tuple(size) if isinstance(size, (tuple, list)) else (size,) * min(2, len(space))
        size = ((1,) * len(space) + size)[-len(space) :]
        return math.prod(-(-n // p) for n, p in zip(space, size, strict=True))

    def lengths(self, network: nn.Module, image: int, text: int) -> tuple[int, int]:
        """Tokens of the picture and of the text inside of the network, with what it puts beside them."""
        return image, text

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        """Tokens of a branch's output: those of the picture, of the text, or of both where two parts are joined."""
        if name.startswith("txt_"):
            return text
        return image + text if len(block.captures[name]) > 1 else image


CROSSING = ("cross_attn", "audio_attn")
"""Branches whose keys and values come from outside: those of the text, whose length stands for that of sounds, too."""


def of_keys(place: str) -> bool:
    """Whether a layer of a branch, by its name, makes keys or values."""
    return place.removeprefix("to_").startswith(("k", "v"))


def width(module: nn.Module) -> int:
    """Channels of what a branch puts out: those of its last layer or norm, or those that it takes in."""
    if hasattr(module, "out_features"):
        return module.out_features
    if getattr(module, "weight", None) is not None:
        return module.weight.shape[0]
    return next(
        getattr(m, name) for m in module.modules() for name in ("in_features", "in_channels") if hasattr(m, name)
    )


def kinds(network: nn.Module, *lists: str) -> list[set[str]]:
    """The class names of the blocks in each of these lists of a network; none where it has no such list."""
    return [{type(block).__name__ for block in getattr(network, name, None) or ()} for name in lists]


Branches = dict[str, Callable[[nn.Module], nn.Module | tuple[nn.Module, ...] | None]]
"""Branch name -> how to find, in a block, what makes its pre-gate output; None: this block has no such branch."""


def numbered(
    network: nn.Module, *lists: tuple[str, Callable, Branches] | tuple[str, Callable, Branches, Marks]
) -> list[Block]:
    """The blocks of a network's lists, each (name, equation of its blocks, their branches, marks), numbered through."""
    depth = sum(len(getattr(network, name)) for name, *_ in lists)
    found: list[Block] = []
    for name, equation, branches, *noted in lists:
        for i, module in enumerate(getattr(network, name)):
            parts = {branch: p for branch, find in branches.items() if (p := find(module)) is not None}
            found.append(
                Block(
                    module,
                    equation,
                    {branch: Site(f"{name}.{i}.{branch}", len(found), depth) for branch in parts},
                    {branch: p if isinstance(p, tuple) else (p,) for branch, p in parts.items()},
                    {
                        (what, branch): mark
                        for marks in noted
                        for what, finds in marks.items()
                        for branch, find in finds.items()
                        if branch in parts and (mark := find(module)) is not None
                    },
                )
            )
    return found


def computing(name: str, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor:
    """The branch that caches nothing."""
    return fn(x)
