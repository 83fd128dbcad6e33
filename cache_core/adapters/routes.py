"""How the blocks of a network are routed through the cache: prepared once per run, in place for the length of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import compress

import torch
from torch import Tensor, nn

from ...errors import SettingError
from ..compiler import LACKS, Outlet, interpreted
from ..run import CacheRun, Forward, relative_error
from ..sites import STACK, Action, Site
from .base import Adapter, Block, computing
from .marks import Mark
from .stack import Stack

INNER_PATCHES = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "mlp_patch")
"""What the host calls, inside a block, on the queries, keys and values, on the attention's output or on the MLP's input."""


MISFITS = (TypeError, ValueError, AttributeError, KeyError, IndexError, ImportError)
"""What an equation raises when the host's block is no longer the one that it describes."""


def host_name() -> str:
    """The ComfyUI in this process, for sentences."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return "this ComfyUI"
    return f"ComfyUI {__version__}"


def unlike(architecture: str, found: str, block: nn.Module | None = None) -> str:
    """Why an adapter disables itself, and what still works."""
    packs = ("comfy", __name__.partition(".")[0])
    theirs = block is not None and type(block).__module__.partition(".")[0] not in packs
    return (
        f"the {architecture} block of {'another node' if theirs else host_name()} is not the one known here ({found}); "
        "Forecast Policy, and FORA Policy with scope 'whole network', still speed this model up"
    )


@contextmanager
def installed(adapter: Adapter, network: nn.Module, cache: Forward) -> Iterator[None]:
    """Route one forward of `network` through the cache.

    A block that computes everything runs the host's own forward and only has its pre-gate outputs noted; the adapter's
    equation runs where something is reused. A block whose forward somebody else replaced is always computed.
    """
    run = cache.run
    routes = run.routes.get(network)
    if routes is None:
        routes = run.routes[network] = Routes(adapter, network, run)
    rows = len(run.trace.rows)
    with routes.through(cache) as noted:
        yield
    if cache.lost or (noted and len(run.trace.rows) == rows):
        run.decline("the blocks of this model did not run: another node skips or replaces them")


@contextmanager
def overridden(forwards: list[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Give modules another forward for the length of the context; afterwards nothing is left on them."""
    before = [(module.__dict__, module.__dict__.get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            module.__dict__["forward"] = forward
        yield
    finally:
        for attributes, own in reversed(before):
            if own is not None:
                attributes["forward"] = own
            else:
                attributes.pop("forward", None)


def unwrapped(network: nn.Module) -> nn.Module:
    """What torch.compile wrapped."""
    return getattr(network, "_orig_mod", network)


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Compiled parts of a network give way to what they were compiled from, while an adapter looks at it."""
    wrapped = _wrapped(network)
    for children, name, child in wrapped:
        children[name] = child._orig_mod
    try:
        yield
    finally:
        for children, name, child in wrapped:
            children[name] = child


def compiled(network: nn.Module) -> bool:
    """Whether torch.compile has to do with a network or a part of it."""
    in_place = any(
        getattr(m, "_compiled_call_impl", None) is not None
        or hasattr(m.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for m in network.modules()
    )
    return in_place or unwrapped(network) is not network or bool(_wrapped(network))


def _wrapped(network: nn.Module) -> list[tuple[dict[str, nn.Module], str, nn.Module]]:
    """(its parent's children, its name, the module) of everything in a network that torch.compile wrapped."""
    parents = (module._modules for module in network.modules())
    return [(children, n, m) for children in parents for n, m in children.items() if unwrapped(m) is not m]


def replaced(module: nn.Module) -> bool:
    """Whether somebody gave this module another forward. What the host puts back is the module's own, on the instance."""
    own = module.__dict__.get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


class Routes:
    """The blocks of one network in one run: what a forward needs is prepared once, and put in place for its length.

    Where torch.compile is about, a forward that computes everything is traced, with an operator wherever an output is
    noted; any other runs uncompiled, as a graph would freeze its decisions and be cut by every one of them.
    """

    def __init__(self, adapter: Adapter, network: nn.Module, run: CacheRun):
        self.adapter, self.wants, self.holds, self.marks = adapter, run.wants, run.holds, run.policy.marks
        self.network = network
        self.cache: Forward | None = None  # of the forward that is under way
        self.originals: dict[nn.Module, Callable] = {}
        self.compiled = run.compiled or compiled(network)
        self.copied = self.compiled  # whether outputs are noted as copies; a compiled graph may reuse its memory
        self.told = False
        self.had: set[str] = set()  # sites that had a turn in some forward
        self.parts: list[list[Tensor | None]] = []
        if self.compiled and LACKS:
            needed = f"beside torch.compile {LACKS}"
            if run.observers:
                raise SettingError(f"Outputs are to be watched: {needed}. Take the compile node out while calibrating.")
            run.forgo(needed)
        with uncompiled(network):
            self.blocks = adapter.blocks(network)
        if self.marks and not any(what == self.marks for block in self.blocks for what, _ in block.marks):
            run.trace.notes.append(
                f"{run.policy.describe()} asks for {self.marks!r} of tokens, which is not known of "
                f"{adapter.architecture}: it does without."
            )
        self.noting = [self._noting(block) for block in self.blocks]
        self.reusing = [self._reusing(block) for block in self.blocks]
        self.checking = [self._checking(block) for block in self.blocks]
        asked = type(adapter).writes is not Adapter.writes and not self.compiled  # what is compiled is copied anyway
        self.hosting = [self._hosting(block) if asked else None for block in self.blocks]
        passable = all(hasattr(block.equation, "returns") for block in self.blocks)
        self.stack = Stack(self) if passable and run.wants(STACK) else None
        if run.wants(STACK) and not passable:
            run.trace.notes.append(f"The blocks of {adapter.architecture} cannot be skipped all at once.")

    @contextmanager
    def through(self, cache: Forward) -> Iterator[bool]:
        """One forward of the network; tells whether anything of it will be noted."""
        self.cache = cache
        try:
            forwards, traceable = self._forwards(cache)
            for module, _ in forwards:
                self.originals[module] = module.forward
            with overridden(forwards), nullcontext() if traceable else interpreted():
                yield bool(forwards)
        finally:
            self.cache = None
            self.had |= cache.had
            if self.stack:
                cache.lost = self.stack.output is not None
                self.stack.output = None
            for parts in self.parts:
                parts[:] = [None] * len(parts)

    def _forwards(self, cache: Forward) -> tuple[list[tuple[nn.Module, Callable]], bool]:
        """Modules with another forward each, and whether torch.compile may trace them."""
        run, forwards, traceable = cache.run, [], True
        noted = bool(run.keeps or run.trace.rows)
        foreign = [replaced(block.module) for block in self.blocks]
        self._tell(sum(foreign))
        if any(foreign):
            cache.theirs = {site for block in compress(self.blocks, foreign) for site in block.sites.values()}
        if self.stack and not any(foreign) and self.stack.skips(cache):
            return self.stack.forwards(cache) + self._idle(cache), False
        for i, (block, theirs) in enumerate(zip(self.blocks, foreign, strict=True)):
            forward = None
            if not theirs and any(cache.action(site) is not Action.COMPUTE for site in block.sites.values()):
                forward, traceable = self.reusing[i], False
            else:
                if noted:
                    forwards += [(module, outlet.after(module.forward)) for module, outlet in self.noting[i]]
                    forward = self.hosting[i]
                if not (theirs or run.declined or run.policy.history == 0 or (self.network, block.kind) in run.checked):
                    forward, traceable = self.checking[i], False
            if self.stack and block is self.stack.last and (forward or noted):
                forward = self.stack.ending(forward or block.module.forward)
            if forward:
                forwards.append((block.module, forward))
        if self.adapter.prefetches and not (traceable or any(foreign)):
            sites = (site for block in self.blocks for site in block.sites.values())
            asked = [site for site in sites if site.name in self.had or not self.wants(site)]  # others never run here
            forwards += self._idle(cache) if asked and all(cache.action(site) is Action.REUSE for site in asked) else []
        return forwards, traceable

    def _idle(self, cache: Forward) -> list[tuple[nn.Module, Callable]]:
        """The network, for a forward in which no block computes: the host is not to bring the weights of all of them."""
        return [(self.network, self._unfetched)] if self.adapter.prefetches and cache.run.measure != "truth" else []

    def _unfetched(self, *args, **kwargs):
        if options := kwargs.get("transformer_options"):
            kwargs["transformer_options"] = options | {"prefetch_dynamic_vbars": False}
        return self.originals[self.network](*args, **kwargs)

    def _tell(self, foreign: int) -> None:
        if foreign and not self.told:
            self.told = True
            self.cache.run.trace.notes.append(
                f"{foreign} of {len(self.blocks)} blocks were replaced by another node and are always computed."
            )

    def _noting(self, block: Block) -> list[tuple[nn.Module, Outlet]]:
        """The modules that make the outputs of a block's branches, each with what notes its output down."""
        found = []
        sources: dict[tuple[nn.Module, ...], list[tuple[Site, Mark]]] = {}  # several branches may share them
        for (what, name), mark in block.marks.items():
            if what == self.marks and self.holds(block.sites[name]):
                sources.setdefault(mark.modules, []).append((block.sites[name], mark))
        for modules, marks in sources.items():
            found += self._gathering(modules, partial(self._mark, marks))
        for name, modules in block.captures.items():
            if self.wants(block.sites[name]):
                found += self._gathering(modules, partial(self._note, block.sites[name]), block.sites[name])
        return found

    def _gathering(
        self, modules: tuple[nn.Module, ...], use: Callable, site: Site | None = None
    ) -> list[tuple[nn.Module, Outlet]]:
        """Outlets of modules after the last of which use(their outputs) is called.

        site: what they are the output of, which may be kept; else they are needed until the last of them has come.
        """
        parts: list[Tensor | None] = [None] * len(modules)
        self.parts.append(parts)

        def gather(place: int, out: Tensor, lent: bool = False) -> None:
            if self.cache is None:
                return
            try:
                lasts = self.cache.run.keeps and self.holds(site) if site else len(modules) > 1
                parts[place] = self.adapter.rows(out.clone() if lasts and (lent or self.copied) else out)
                if all(part is not None for part in parts):
                    use(parts)
                    parts[:] = [None] * len(parts)
            except (RuntimeError, MemoryError) as error:
                if not self.cache.run.survives(error):
                    raise
            except MISFITS as error:  # outputs are no longer what they were
                if self.cache.run.observers:
                    raise
                self.cache.run.decline(unlike(self.adapter.architecture, str(error)))

        return [(module, Outlet(partial(gather, place))) for place, module in enumerate(modules)]

    def _note(self, site: Site, outs: list[Tensor]) -> None:
        if all(map(self.cache.whole, outs)):
            joined = len(outs) > 1 and self.holds(site)
            self.cache.computed(site, torch.cat(outs, dim=1) if joined else outs[0])

    def _mark(self, marks: list[tuple[Site, Mark]], outs: list[Tensor]) -> None:
        noted = marks[0][1].note(*outs)  # of the same modules, the same is noted
        for site, _ in marks:
            self.cache.mark(site, noted)

    def _hosting(self, block: Block) -> Callable:
        """The host's own forward, after asking whether it will write to what is noted."""

        def hosted(*args, **kwargs):
            self.copied = self.compiled or self.adapter.writes(kwargs)
            return self.originals[block.module](*args, **kwargs)

        return hosted

    def _reusing(self, block: Block) -> Callable:
        """The adapter's equation, its branches handed to the cache."""

        def branch(name: str, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor:
            return self.cache.branch(block.sites[name], fn, x, tokenwise)

        def reusing(*args, **kwargs):
            if self.declined(kwargs):
                return self.originals[block.module](*args, **kwargs)
            return block.equation(block.module, branch, *args, **kwargs)

        return reusing

    def declined(self, kwargs: dict) -> bool:
        """A block that another node reaches into, unseen by the equation, is none to cache."""
        patches, heeds = (kwargs.get("transformer_options") or {}).get("patches"), self.adapter.heeds
        names = [n for n in INNER_PATCHES if not all(map(heeds, patches.get(n) or ()))] if patches else ()
        if names:
            told = ", ".join(names)
            self.cache.run.decline(
                f"another node patches the attention or the MLP inside the blocks of this model ({told})"
            )
        return bool(names)

    def _checking(self, block: Block) -> Callable:
        """Of the first block of a kind that runs: the equation, computing everything, must agree with the host's block."""
        hosted = self._hosting(block)

        def checking(*args, **kwargs):
            if not self._first(block) or self.declined(kwargs):
                return hosted(*args, **kwargs)
            before = _copied(args, kwargs)
            expected = hosted(*args, **kwargs)
            self._compare(block, before, expected)
            return expected

        return checking

    def _first(self, block: Block) -> bool:
        """Whether none of its kind was compared in this run; another node may skip some."""
        kind, checked = (self.network, block.kind), self.cache.run.checked
        new = kind not in checked
        checked.add(kind)
        return new

    def _compare(self, block: Block, before: tuple[list, dict], expected) -> None:
        run, architecture = self.cache.run, self.adapter.architecture
        cache, self.cache = self.cache, None  # what follows is not noted
        try:
            args, kwargs = before
            worst = _difference(block.equation(block.module, computing, *args, **kwargs), expected)
        except (*MISFITS, RuntimeError, MemoryError) as error:
            if not run.survives(error, "comparing a block of this model with ComfyUI's"):
                run.decline(unlike(architecture, str(error), block.module))
            return
        finally:
            self.cache = cache
        if not worst < tolerance(expected):
            found = f"it computes something else, by a relative difference of {worst:.1e}"
            run.decline(unlike(architecture, found, block.module))


def _copied(args: tuple, kwargs: dict) -> tuple[list, dict]:
    """Some hosts update their inputs in place."""

    def copy(value):
        if type(value) is tuple:
            return tuple(map(copy, value))
        return value.clone() if isinstance(value, Tensor) else value

    return [copy(a) for a in args], {k: copy(a) for k, a in kwargs.items()}


def _difference(found, expected) -> float:
    pairs = [(found, expected)] if isinstance(expected, Tensor) else list(zip(found, expected, strict=True))
    errors = [relative_error(a, b) for a, b in pairs if isinstance(b, Tensor)]
    return torch.stack(errors).max().item()  # of which one that is no number stays none


def tolerance(output) -> float:
    """How far two orders of the same arithmetic may differ, by precision."""
    dtype = next(o.dtype for o in ([output] if isinstance(output, Tensor) else output) if isinstance(o, Tensor))
    return 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
