"""Courier: brings tensors from main memory to a device while that computes something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from threading import Event

import torch
from torch import Tensor

from .codecs import page_locked

LOAD = 2**27
"""Bytes that are carried at once, where a single tensor has no more."""

Errand = tuple[Tensor, Callable[[], Tensor | None]]
"""(where to, what gives the tensor in main memory, if there is one)"""


class Courier:
    """A thread that fills tensors of a device, in its own stream where there are streams (CUDA).

    Only page-locked memory is copied from beside other work, and locking what a file was read into takes longer than
    copying it: everything passes through two buffers. Many tensors go in one call, because after every call both threads
    want to be the one that runs Python.
    """

    def __init__(self, device: torch.device, most: int):
        """most: bytes of the largest tensor."""
        self.device, self.load = device, _aligned(max(most, LOAD))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "PriorCache")
        self._left = Event()
        self._buffers: cycle[tuple[Tensor, torch.cuda.Event | None]] | None = None

    def bring(self, errands: Sequence[Errand]) -> Future:
        """Begin, once the device got to where its work stands now. `met` says when it is done."""
        since = self._mark(self._current())
        return self._thread.submit(self._bring, errands, since)

    def met(self, errand: Future) -> list[bool]:
        """Which tensors there were; they may be used from here on in the device's current stream. Raises what went wrong."""
        found, done = errand.result()
        if done is not None:
            self._current().wait_event(done)
        return found

    def close(self) -> None:
        """Stop where it is; memory of tensors that were to be filled may be used otherwise from here on."""
        self._left.set()
        self._thread.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._current().wait_stream(self._stream)

    def _bring(self, errands: Sequence[Errand], since) -> tuple[list[bool], torch.cuda.Event | None]:
        with torch.inference_mode(), self._beside():
            if since is not None:
                self._stream.wait_event(since)
            loaded = [(there, load()) for there, load in errands]
            for part in self._loads([(there, tensor) for there, tensor in loaded if tensor is not None]):
                if self._left.is_set():
                    break
                self._carry(*zip(*part, strict=True))
            return [tensor is not None for _, tensor in loaded], self._mark(self._stream)

    def _loads(self, pairs: list[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """What fits into a buffer, one after the other."""
        part, room = [], self.load
        for there, tensor in pairs:
            if _aligned(tensor.nbytes) > room:
                yield part
                part, room = [], self.load
            part.append((there, tensor))
            room -= _aligned(tensor.nbytes)
        if part:
            yield part

    def _carry(self, places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        if self._buffers is None:
            events = [None if self._stream is None else torch.cuda.Event() for _ in range(2)]
            self._buffers = cycle([(page_locked((self.load,), torch.uint8), event) for event in events])
        buffer, free = next(self._buffers)
        if free is not None:
            free.synchronize()
        sizes = [_aligned(t.nbytes) for t in tensors]
        parts = buffer[: sum(sizes)].split(sizes)
        passing = [part[: t.nbytes].view(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(passing, tensors)
        if any(t.dtype is not there.dtype for t, there in zip(tensors, places, strict=True)):  # half as much travels
            passing = [part.to(self.device, non_blocking=True) for part in passing]
        torch._foreach_copy_(places, passing, non_blocking=True)
        if free is not None:
            free.record(self._stream)

    def _beside(self) -> AbstractContextManager:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _current(self):
        return None if self._stream is None else torch.cuda.current_stream(self.device)

    @staticmethod
    def _mark(stream):
        return None if stream is None else stream.record_event()


def _aligned(nbytes: int) -> int:
    """So that whatever comes next may be of any dtype."""
    return -(-nbytes // 16) * 16
