"""Beside torch.compile: its graphs tell of a tensor without being cut, and what reuses or decides runs without it.

A cut in a loop over blocks would cost the whole network its graph for good, also in runs without a cache: Dynamo gives
up such a frame, and does not try it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from threading import Lock
from weakref import WeakValueDictionary

import torch
from torch import Tensor

KNOWN = hasattr(torch.compiler, "set_stance")
"""Whether this torch can be told to leave alone what it compiled, which it can from 2.6 on."""

LACKS = "" if KNOWN else f"torch 2.6 is needed, and this one is {torch.__version__}"
if sys.version_info[:3] == (3, 13, 0):  # CPython issue 125608: there torch does without the guards that would tell
    LACKS = "Python 3.13.1 is needed, as with 3.13.0 a graph does not notice what is attached to its network"
"""What is needed beside it, and is not there, in words."""


class Outlet:
    """A place at which `use` is called with the output of a module, also from within a compiled graph.

    A graph holds an operator and is given the outlet's number as an input, so that it serves every run. To the compiler all
    operators write to one further input: so none is moved past another, nor dropped where nothing else needs the output.
    What `use` is called with from there is `lent`, and to be copied, as a graph may use its memory again.
    """

    def __init__(self, use: Callable[..., None]):
        number = next(_numbers)
        self.use, self.number = use, torch.tensor(number, device="cpu")
        _outlets[number] = self

    def after(self, forward: Callable, place: int | None = None) -> Callable:
        """The forward of a module, whose output is told of, a tensor or several; place: which of its outputs, if any."""
        use, number = self.use, self.number

        def told(*args, **kwargs):
            out = forward(*args, **kwargs)
            found = out if place is None else out[place]
            if KNOWN and torch.compiler.is_dynamo_compiling():
                _tell([found] if isinstance(found, Tensor) else list(found), number, _order)
            else:
                use(found)
            return out

        return told


_numbers = count()
_outlets: WeakValueDictionary[int, Outlet] = WeakValueDictionary()
with torch.inference_mode(False):
    _order = torch.tensor(0, device="cpu")


def _told(outs: list[Tensor], number: Tensor, order: Tensor) -> None:
    outlet = _outlets.get(number.item())
    if outlet is not None:
        outlet.use(outs if len(outs) > 1 else outs[0], lent=True)


if KNOWN:
    # Not after the pack, which the host names by its path: torch reads ASCII only. Whoever loads the pack twice has two.
    _names = (f"priorcache{n or ''}" for n in count())
    _library = torch.library.Library(next(n for n in _names if not hasattr(getattr(torch.ops, n), "tell")), "FRAGMENT")
    # CUDA graphs, which would record the copy once and call nothing at all, are kept out by the tag, or by a tensor of the CPU.
    _tags = [tag for tag in (getattr(torch._C.Tag, "cudagraph_unsafe", None),) if tag is not None]
    _library.define("tell(Tensor[] outs, Tensor number, Tensor(a!) order) -> ()", tags=_tags)
    _library.impl("tell", _told, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_library.ns}::tell", lambda outs, number, order: None, lib=_library)
    _tell = getattr(torch.ops, _library.ns).tell.default


def untraced(function: Callable) -> Callable:
    """The function, into which torch.compile does not look where its caller is compiled; what is compiled in it still is."""
    apart = None

    @wraps(function)
    def called(*args, **kwargs):
        nonlocal apart
        if apart is None and "torch._dynamo" in sys.modules:  # importing it takes long
            apart = torch.compiler.disable(function)
        return (apart or function)(*args, **kwargs)

    return called


_turn = Lock()
_inside = 0
_stance = None


@contextmanager
def interpreted() -> Iterator[None]:
    """Nothing is compiled meanwhile, and what is compiled runs as it was written; for all threads, as torch has it."""
    global _inside, _stance
    with _turn:
        if _inside == 0 and KNOWN and "torch._dynamo" in sys.modules:
            _stance = torch.compiler.set_stance("force_eager")
        _inside += 1
    try:
        yield
    finally:
        with _turn:
            _inside -= 1
            if _inside == 0 and _stance is not None:
                _stance.__exit__(None, None, None)
                _stance = None
