"""How features are kept: as they are, in main memory, or in 8 bits."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Kept(NamedTuple):
    """A feature as it is kept: tensors whose rows (dim 0) are those of the feature, so that lanes can split and join."""

    parts: tuple[Tensor, ...]
    dtype: torch.dtype
    device: torch.device
    left: torch.cuda.Event | None = None  # when it is there, where it was sent on its way


class Codec(Protocol):
    """Between a feature and what is kept of it. `on_device`: whether that lies in the device's own memory."""

    name: str
    on_device: bool

    def for_run(self) -> Codec:
        """The one to use in one sampling run, or this one where it holds nothing itself."""
        return self

    def clear(self) -> None:
        """Nothing that was encoded is needed any more."""

    def encode(self, value: Tensor) -> Kept: ...

    def decode(self, kept: Kept) -> Tensor:
        """The feature again, in its dtype and on its device; nobody may write to it."""
        ...

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """What keeping a feature of this shape and dtype takes."""
        ...

    def wait(self, device: torch.device) -> None:
        """Until what was encoded on a device may be read where it lies, by other means than `decode`."""


def page_locked(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Main memory that CUDA copies from and to by itself; ordinary memory where no more of it can be locked."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(shape, dtype=dtype)


class AsIs(Codec):
    """The tensor itself, where it is."""

    name, on_device = "device", True

    def encode(self, value: Tensor) -> Kept:
        return Kept((value,), value.dtype, value.device)

    def decode(self, kept: Kept) -> Tensor:
        return kept.parts[0]

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return math.prod(shape) * dtype.itemsize


class InMainMemory(AsIs):
    """Moved to the CPU, and back whenever it is asked for.

    Beside CUDA into page-locked memory (pageable memory is several times slower, and stops the CPU at every branch), in a
    stream of its own: the device computes the next branch meanwhile. Back it comes in the stream that computes, which in a
    reused branch has nothing else to do. Any other device is waited for: Apple's bring other numbers where nobody waits
    (PyTorch issue 139550).
    """

    name, on_device = "cpu", False
    beside = ("cuda",)
    """Devices that copy while they compute."""

    def __init__(self):
        self._ways: dict[torch.device, _Way] = {}

    def for_run(self) -> Codec:
        return type(self)()

    def encode(self, value: Tensor) -> Kept:
        device = value.device
        if device.type not in self.beside:
            return Kept((value.to("cpu"),), value.dtype, device)
        if device not in self._ways:
            self._ways[device] = _Way(device)
        there = page_locked(value.shape, value.dtype)
        return Kept((there,), value.dtype, device, self._ways[device].leave(value, there))

    def decode(self, kept: Kept) -> Tensor:
        if kept.left is not None:
            torch.cuda.current_stream(kept.device).wait_event(kept.left)
        return kept.parts[0].to(kept.device, non_blocking=kept.device.type in self.beside)

    def wait(self, device: torch.device) -> None:
        if device in self._ways:
            self._ways[device].stream.synchronize()

    def clear(self) -> None:
        for way in self._ways.values():
            way.let_go()


class _Way:
    """Out of a device, beside what it computes."""

    AHEAD = 1
    """Tensors that may be under way; whatever comes next waits for the first of them, as what leaves takes the device's memory."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self._leaving: deque[tuple[Tensor, torch.cuda.Event, torch.cuda.Stream]] = deque()

    def leave(self, value: Tensor, there: Tensor) -> torch.cuda.Event:
        """When it will have arrived. Nobody writes to `value`, and its memory stays its own until then."""
        computing, value = torch.cuda.current_stream(value.device), value.contiguous()
        self.let_go(self.AHEAD - 1)
        self.stream.wait_stream(computing)
        with torch.cuda.stream(self.stream):
            there.copy_(value, non_blocking=True)
        left = self.stream.record_event()
        self._leaving.append((value, left, computing))
        return left

    def let_go(self, most: int = 0) -> None:
        """Hold no more than these: whatever the stream that made a tensor does next waits until it has left, and its memory is free."""
        while len(self._leaving) > most:
            _, left, since = self._leaving.popleft()
            since.wait_event(left)


class EightBit(Codec):
    """Whole numbers from -127 to 127, and a bfloat16 scale for every GROUP of neighbouring channels of a token.

    One scale for a whole token would let a single large channel, of which transformers have many, blur all the others.
    """

    GROUP = 32
    name, on_device = "8 bit", True

    def encode(self, value: Tensor) -> Kept:
        groups = value.unflatten(-1, (-1, self._group(value.shape[-1])))
        scale = (groups.abs().amax(-1, keepdim=True).float() / 127).bfloat16()  # 127 / rounded scale < 127.5
        tiny = torch.finfo(torch.float32).tiny
        whole = (groups / scale.float().clamp_min(tiny)).round_().to(torch.int8)
        return Kept((whole, scale), value.dtype, value.device)

    def decode(self, kept: Kept) -> Tensor:
        whole, scale = kept.parts
        return (whole * scale.float()).to(kept.dtype).flatten(-2)

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return math.prod(shape) + math.prod(shape) // self._group(shape[-1]) * torch.bfloat16.itemsize

    def _group(self, width: int) -> int:
        return self.GROUP if width % self.GROUP == 0 else width


CODECS: dict[str, Codec] = {c.name: c for c in (AsIs(), InMainMemory(), EightBit())}
