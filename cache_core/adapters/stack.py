"""STACK: all blocks of a network skipped at once, while whatever comes before and after them still runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..compiler import Outlet
from ..sites import STACK, Action
from ..trace import Row
from .base import Block

if TYPE_CHECKING:
    from ..run import Forward
    from .routes import Routes


class Stack:
    """Notes the picture's hidden state after the last block; to skip, blocks hand on what they get and the last one it.

    It is kept and handed out as a copy, because networks add to it (ControlNet) or write to it.
    """

    def __init__(self, routes: Routes):
        self.routes, self.last = routes, routes.blocks[-1]
        self.sites = [site for block in routes.blocks for site in block.sites.values()]
        self.output: Tensor | None = None  # of the forward that is under way, where it skips
        self.passing = [(block.module, self._passing(block)) for block in routes.blocks]
        returned = self.last.equation.returns
        self._place = returned.index(self.last.equation.picture) if len(returned) > 1 else None
        self._outlet = Outlet(self.note)

    def skips(self, cache: Forward) -> bool:
        """Whether this forward is to skip all blocks; then what they would put out is at hand, too."""
        if cache.action(STACK) is Action.REUSE:
            self.output, _ = cache.approximate(STACK, Action.REUSE, None)
        return self.output is not None

    def forwards(self, cache: Forward) -> list[tuple[nn.Module, Callable]]:
        """All blocks pass; in shadow they run, and only the last one's output is replaced."""
        return self.passing[-1:] if cache.run.measure == "truth" else self.passing

    def ending(self, forward: Callable) -> Callable:
        """A forward of the last block, whose output is noted down."""
        return self._outlet.after(forward, self._place)

    def _passing(self, block: Block) -> Callable:
        routes, equation = self.routes, block.equation
        names = list(inspect.signature(equation).parameters)[2:]  # after the module and what takes the branches
        places = [(names.index(name), name) for name in equation.returns]
        picture, ends = equation.returns.index(equation.picture), (routes.blocks[0], self.last)

        def passing(*args, **kwargs):
            out = [args[place] if place < len(args) else kwargs[name] for place, name in places]
            first, some = (
                block is routes.blocks[0],
                block in ends and not routes.cache.whole(routes.adapter.rows(out[picture])),
            )
            unfit = some or routes.declined(kwargs)
            if unfit and (
                first or routes.cache.run.measure == "truth"
            ):  # else blocks before it passed on what they got
                self.output = None
            if unfit or self.output is None:
                return routes.originals[block.module](*args, **kwargs)
            if first:  # networks write to what blocks hand on, and some need what they gave, too
                rows = routes.adapter.rows(out[picture]).clone()
                out[picture] = routes.adapter.hidden(rows, out[picture])
            if block is self.last:
                truth = routes.cache.run.measure == "truth"
                exact = routes.originals[block.module](*args, **kwargs) if truth else None
                out[picture] = routes.adapter.hidden(self.replace(exact), out[picture])
                self.output = None  # of this run of the blocks: another one in the same forward is computed
            return tuple(out) if len(out) > 1 else out[0]

        return passing

    def note(self, picture: Tensor | tuple | list, lent: bool = False) -> None:
        cache = self.routes.cache
        if cache is None:
            return
        try:
            rows = self.routes.adapter.rows(picture).clone()
        except (RuntimeError, MemoryError) as error:
            if not cache.run.survives(error):
                raise
            return
        cache.computed(STACK, rows)

    def replace(self, exact: Tensor | tuple | None) -> Tensor:
        cache = self.routes.cache
        exact = None if exact is None else self._picture(exact)
        out = cache.reused(STACK, self.output, None, None, exact)
        cache.run.trace.rows += [
            Row(cache.step.index, site, Action.REUSE, None) for site in self.sites if cache.run.wants(site)
        ]
        return out.clone()

    def _picture(self, out: Tensor | tuple) -> Tensor:
        return self.routes.adapter.rows(out if self._place is None else out[self._place])
