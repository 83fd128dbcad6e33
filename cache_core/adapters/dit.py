"""DiT (arXiv 2212.09748), this pack's own `models/dit.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...models.dit import modulate
from .base import Adapter, Block, Branch, numbered, returns
from .marks import received, values


class DiTAdapter(Adapter):
    architecture = "dit"

    def matches(self, network: nn.Module) -> bool:
        return type(network).__name__ == "DiT" and hasattr(network, "y_embedder") and hasattr(network, "blocks")

    def blocks(self, network: nn.Module) -> list[Block]:
        marks = {
            "values": {"mlp": lambda b: values(b.attn.qkv, b.attn.num_heads, 3)},
            "received": {"mlp": lambda b: received(b.attn.qkv, b.attn.num_heads)},
        }
        return numbered(network, ("blocks", block, {"attn": lambda b: b.attn, "mlp": lambda b: b.mlp}, marks))


@returns("x")
def block(self: nn.Module, branch: Branch, x: Tensor, c: Tensor) -> Tensor:
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
    attn = branch("attn", lambda x: self.attn(modulate(self.norm1(x), shift_a, scale_a)), x)
    x = torch.addcmul(x, gate_a, attn)
    mlp = branch("mlp", lambda x: self.mlp(modulate(self.norm2(x), shift_m, scale_m)), x, tokenwise=True)
    return torch.addcmul(x, gate_m, mlp)
