"""Courier: brings tensors from main memory to a device while that computes something else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from threading import Event

import torch
from torch import Tensor

from .codecs import page_locked

LOAD = 2**27
"""Bytes that are carried at once, where a single tensor has no more."""

Errand = tuple[Tensor, Callable[[], Tensor | None]]
"""(where to, what gives the tensor in main memory, if there is one; asked by the thread, right before it is carried)"""


class Courier:
    """A thread that fills tensors of a device, in its own stream where there are streams (CUDA).

    Only page-locked memory is copied from beside other work, and locking what a file was read into takes longer than
    copying it: everything passes through two buffers. Many tensors go in one call, because after every call both threads
    want to be the one that runs Python.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "PriorCache")
        self._left = Event()
        frees = [None if self._stream is None else torch.cuda.Event() for _ in range(2)]
        self._buffers = deque((torch.empty(0, dtype=torch.uint8), free) for free in frees)  # grow to what is carried

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
        found: list[bool] = []
        with torch.inference_mode(), self._beside():
            if since is not None:
                self._stream.wait_event(since)
            for part in self._loads(errands, found):
                if self._left.is_set():
                    break
                self._carry(*zip(*part, strict=True))
            return found, self._mark(self._stream)

    @staticmethod
    def _loads(errands: Sequence[Errand], found: list[bool]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """What is carried at once, one after the other, so that no more than this is made at a time."""
        part, room = [], LOAD
        for there, load in errands:
            tensor = load()
            found.append(tensor is not None)
            if tensor is None:
                continue
            if part and _aligned(tensor.nbytes) > room:
                yield part
                part, room = [], LOAD
            part.append((there, tensor))
            room -= _aligned(tensor.nbytes)
        if part:
            yield part

    def _carry(self, places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        sizes = [_aligned(t.nbytes) for t in tensors]
        parts = self._buffer(sum(sizes)).split(sizes)
        passing = [part[: t.nbytes].view(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(passing, tensors)
        torch._foreach_copy_(places, passing, non_blocking=True)  # another dtype is made of them on the device
        _, free = self._buffers[0]
        if free is not None:
            free.record(self._stream)

    def _buffer(self, nbytes: int) -> Tensor:
        """So much of the buffer whose turn it is, once what passed through it last has left."""
        self._buffers.rotate()
        buffer, free = self._buffers[0]
        if free is not None:
            free.synchronize()
        if len(buffer) < nbytes:
            buffer = page_locked((1 << (nbytes - 1).bit_length(),), torch.uint8)  # what CUDA's allocator takes anyway
            self._buffers[0] = buffer, free
        return buffer[:nbytes]

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
