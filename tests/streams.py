"""The CPU as a device that copies beside what it computes, as late as it is allowed to."""

from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace
from weakref import ref

import torch
from priorcache.cache_core import codecs
from priorcache.cache_core.codecs import InMainMemory
from torch.utils._python_dispatch import TorchDispatchMode


class Late(TorchDispatchMode):
    """A stream in which nothing is copied before somebody waits for it, out of memory that may be another's by then."""

    def __init__(self):
        super().__init__()
        self.queue, self.begun, self.done = deque(), 0, 0
        self.waited = False  # for what was computed since the last copy

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is torch.ops.aten.copy_.default
        assert self.waited, "copied before it was computed"
        self.waited = False
        there, value = args[0], ref(args[1])
        self.queue.append((there, value))
        self.begun += 1
        return there

    def until(self, count: int) -> None:
        while self.done < count:
            there, value = self.queue.popleft()
            there.copy_(torch.full_like(there, torch.nan) if value() is None else value())
            self.done += 1

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(until=lambda count=self.begun: self.until(count))

    def synchronize(self) -> None:
        self.until(self.begun)

    def wait_stream(self, other) -> None:
        assert isinstance(other, AtOnce)
        self.waited = True


class AtOnce:
    """The stream that computes."""

    def wait_event(self, event) -> None:
        event.until()


def copying_late(monkeypatch) -> list[Late]:
    """The streams that will have been made."""
    made, computing = [], AtOnce()

    def stream(device):
        made.append(Late())
        return made[-1]

    @contextmanager
    def within(stream):
        with stream:
            yield

    monkeypatch.setattr(InMainMemory, "beside", ("cpu",))
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(codecs, "page_locked", lambda shape, dtype: torch.full(shape, torch.nan, dtype=dtype))
    return made
