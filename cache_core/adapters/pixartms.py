"""PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692)."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Adapter, Block, Branch, kinds, numbered, returns
from .marks import Mark, entropy, values


class PixArtMSAdapter(Adapter):
    architecture = "pixartms"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "blocks") == [{"PixArtMSBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.attn, "cross_attn": lambda b: b.cross_attn, "mlp": lambda b: b.mlp}
        marks = {
            "values": {name: lambda b: values(b.attn.qkv, b.attn.num_heads, 3) for name in ("cross_attn", "mlp")},
            "entropy": {name: lambda b: spread(b.cross_attn) for name in ("cross_attn", "mlp")},
        }
        return numbered(network, ("blocks", block, branches, marks))


def spread(cross: nn.Module) -> Mark:
    return entropy(cross.q_linear, cross.kv_linear, cross.num_heads)


@returns("x")
def block(
    self: nn.Module, branch: Branch, x: Tensor, y: Tensor, t: Tensor, mask=None, HW: tuple | None = None, **_
) -> Tensor:
    table = self.scale_shift_table.to(x) + t.unflatten(-1, (6, -1))
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.chunk(6, dim=1)

    def attn(x: Tensor) -> Tensor:
        return self.attn(self.norm1(x) * (1 + scale_a) + shift_a, HW=HW)

    def cross_attn(x: Tensor) -> Tensor:  # every token of x asks all of y, whatever the other tokens ask
        return self.cross_attn(x, y, mask)

    def mlp(x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)

    x = x + gate_a * branch("attn", attn, x)
    x = x + branch("cross_attn", cross_attn, x, tokenwise=True)
    x = x + gate_m * branch("mlp", mlp, x, tokenwise=True)
    return x
