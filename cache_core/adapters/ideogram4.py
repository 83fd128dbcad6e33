"""Ideogram 4 (https://huggingface.co/collections/ideogram-ai/ideogram-4): text and image as one sequence, or image alone."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class Ideogram4Adapter(Adapter):
    architecture = "ideogram4"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "layers") == [{"Ideogram4TransformerBlock"}]

    def patches(self, network: nn.Module, latent: tuple[int, ...]) -> int:
        return math.prod(latent[1:])  # latents come as patches

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        return image + text

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.attention_norm2, "mlp": lambda b: b.ffn_norm2}
        marks = {"mlp": lambda b: values(b.attention.qkv, b.attention.num_heads, 3)}
        return numbered(network, ("layers", transformer_block, branches, {"values": marks}))

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        return ((block.module.attention if name == "attn" else block.module.feed_forward,),)


@returns("x")
def transformer_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    attn_mask: Tensor | None,
    freqs_cis: Tensor,
    adaln_input: Tensor,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    scale_a, gate_a, scale_m, gate_m = self.adaln_modulation(adaln_input).chunk(4, dim=-1)

    def attention(x: Tensor) -> Tensor:
        modulated = self.attention_norm1(x) * (1 + scale_a)
        out = self.attention(modulated, attn_mask, freqs_cis, transformer_options=transformer_options)
        return self.attention_norm2(out)

    def mlp(x: Tensor) -> Tensor:
        return self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1 + scale_m)))

    x = x + gate_a.tanh() * branch("attn", attention, x)
    return x + gate_m.tanh() * branch("mlp", mlp, x, tokenwise=True)
