"""How features are kept: as they are, in main memory, or in 8 bits."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Kept(NamedTuple):
    """A feature as it is kept: tensors whose rows (dim 0) are those of the feature, so that lanes can split and join."""

    parts: tuple[Tensor, ...]
    dtype: torch.dtype
    device: torch.device


class Codec(Protocol):
    """Between a feature and what is kept of it. `on_device`: whether that lies in the device's own memory."""

    name: str
    on_device: bool

    def encode(self, value: Tensor) -> Kept: ...

    def decode(self, kept: Kept) -> Tensor:
        """The feature again, in its dtype and on its device; nobody may write to it."""
        ...

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """What keeping a feature of this shape and dtype takes."""
        ...

    def wait(self, device: torch.device) -> None:
        """Until what was encoded on a device may be read where it lies, by other means than `decode`."""
        ...


def page_locked(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Main memory that CUDA copies from and to by itself; ordinary memory where no more of it can be locked."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(shape, dtype=dtype)


class AsIs:
    """The tensor itself, where it is."""

    name, on_device = "device", True

    def encode(self, value: Tensor) -> Kept:
        return Kept((value,), value.dtype, value.device)

    def decode(self, kept: Kept) -> Tensor:
        return kept.parts[0]

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return math.prod(shape) * dtype.itemsize

    def wait(self, device: torch.device) -> None:
        pass


class InMainMemory(AsIs):
    """Moved to the CPU, and back whenever it is asked for.

    Beside CUDA into page-locked memory: copies then wait their turn in the stream that computes, which orders them, and
    the CPU goes on. Pageable memory is several times slower, and stops the CPU at every branch. Any other device is waited
    for: Apple's bring other numbers where nobody waits (PyTorch issue 139550).
    """

    name, on_device = "cpu", False

    def encode(self, value: Tensor) -> Kept:
        if value.is_cuda:
            there = page_locked(value.shape, value.dtype).copy_(value, non_blocking=True)
        else:
            there = value.to("cpu")
        return Kept((there,), value.dtype, value.device)

    def decode(self, kept: Kept) -> Tensor:
        return kept.parts[0].to(kept.device, non_blocking=kept.device.type == "cuda")

    def wait(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()


class EightBit:
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

    def wait(self, device: torch.device) -> None:
        pass

    def _group(self, width: int) -> int:
        return self.GROUP if width % self.GROUP == 0 else width


CODECS: dict[str, Codec] = {c.name: c for c in (AsIs(), InMainMemory(), EightBit())}
