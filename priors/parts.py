"""Several tensors measured as one, such as the latent of a video and that of its sound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def parts(value: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """A tensor alone; those of a list, or of what the host calls a NestedTensor."""
    if getattr(value, "is_nested", False):
        return value.unbind()
    return [value] if isinstance(value, Tensor) else value


def as_one(value: Tensor | Sequence[Tensor]) -> Tensor:
    """A tensor (B, ...) as it is; several as one (B, N) whose mean square is the mean of theirs, however few numbers one has."""
    first, *others = parts(value)
    if not others:
        return first
    rows = [part.flatten(1) for part in (first, *others)]
    even = sum(part.shape[1] for part in rows) / len(rows)
    return torch.cat([part * math.sqrt(even / part.shape[1]) for part in rows], dim=1)
