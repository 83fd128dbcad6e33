"""Courier: brings tensors from main memory to a device while that computes something else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from threading import Event

import torch
from torch import Tensor

from .codecs import page_locked

BUFFERS = 4
"""Pieces of page-locked memory through which tensors pass in turn."""

Errand = tuple[Tensor, Callable[[], Tensor | None]]
"""(where to, what gives the tensor in main memory, if there is one)"""


class Courier:
    """A thread that fills tensors of a device, in its own stream where there are streams (CUDA).

    Only page-locked memory is copied from beside other work, and locking what a file was read into takes longer than
    copying it: everything passes through a few buffers of the size of the largest.
    """

    def __init__(self, device: torch.device, most: int):
        self.device, self.most = device, most
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "PriorCache")
        self._left = Event()
        self._buffers: cycle[tuple[Tensor, torch.cuda.Event | None]] | None = None

    def bring(self, errands: Iterable[Errand]) -> Future:
        """Begin, once the device got to where its work stands now. `met` says when it is done."""
        since = self._mark(self._current())
        return self._thread.submit(self._bring, list(errands), since)

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

    def _bring(self, errands: list[Errand], since) -> tuple[list[bool], torch.cuda.Event | None]:
        with torch.inference_mode(), self._beside():
            if since is not None:
                self._stream.wait_event(since)
            found = []
            for there, load in errands:
                tensor = None if self._left.is_set() else load()
                if tensor is not None:
                    self._carry(tensor, there)
                found.append(tensor is not None)
            return found, self._mark(self._stream)

    def _carry(self, tensor: Tensor, there: Tensor) -> None:
        if self._buffers is None:
            events = [None if self._stream is None else torch.cuda.Event() for _ in range(BUFFERS)]
            self._buffers = cycle([(page_locked((self.most,), torch.uint8), event) for event in events])
        buffer, free = next(self._buffers)
        if free is not None:
            free.synchronize()
        passing = buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        passing.copy_(tensor)
        alike = tensor.dtype is there.dtype  # else converted there: half as much travels
        there.copy_(passing if alike else passing.to(there.device, non_blocking=True), non_blocking=True)
        if free is not None:
            free.record(self._stream)

    def _beside(self) -> AbstractContextManager:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _current(self):
        return None if self._stream is None else torch.cuda.current_stream(self.device)

    @staticmethod
    def _mark(stream):
        return None if stream is None else stream.record_event()
