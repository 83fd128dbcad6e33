"""What may be noted of a block's tokens while they are computed, for policies that choose among them.

"values": how long a token's value vectors are. "received": how much attention it gets. "entropy": over how many words
its own attention spreads. Only what a policy asks for is noted; none but "received" and "entropy" costs an attention map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Mark(NamedTuple):
    """note(outputs of the modules, in this order) -> (B, N), in float32."""

    modules: tuple[nn.Module, ...]
    note: Callable[..., Tensor]


Marks = dict[str, dict[str, Callable[[nn.Module], Mark | None]]]
"""What is noted -> branch whose tokens it is noted of -> how to find, in a block, what it is noted from."""


def values(projection: nn.Module, heads: int, parts: int = 1) -> Mark:
    """`projection` puts out the values, or `parts` equal parts of which they are the last: q, k, v."""
    return Mark((projection,), partial(_norms, heads=heads, parts=parts))


def received(projection: nn.Module, heads: int) -> Mark:
    """`projection` puts out q, k, v, which enter the attention as they are."""
    return Mark((projection,), partial(_received, heads=heads))


def entropy(query: nn.Module, key_value: nn.Module, heads: int) -> Mark:
    """`key_value` puts out the keys and values of the text, of all rows one after another where it has but one row."""
    return Mark((query, key_value), partial(_entropy, heads=heads))


def _norms(out: Tensor, heads: int, parts: int) -> Tensor:
    return out.chunk(parts, -1)[-1].unflatten(-1, (heads, -1)).float().norm(dim=-1).mean(-1)


def _maps(q: Tensor, k: Tensor, heads: int):
    """The attention map (B, Nq, Nk) of each head in turn."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (q, k))
    for head in range(heads):
        yield (q[:, head] @ k[:, head].mT * q.shape[-1] ** -0.5).softmax(-1)


def _received(qkv: Tensor, heads: int) -> Tensor:
    q, k, _ = qkv.chunk(3, -1)
    return sum(attention.sum(1) for attention in _maps(q, k, heads)) / heads


def _entropy(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    mean = sum(_maps(q, kv.chunk(2, -1)[0].reshape(len(q), -1, q.shape[-1]), heads)) / heads
    return -torch.xlogy(mean, mean + 1e-7).sum(-1)
