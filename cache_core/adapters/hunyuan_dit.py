"""Hunyuan-DiT (arXiv 2405.08748): blocks of the first half reach those of the second by long skip connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class HunyuanDiTAdapter(Adapter):
    """What joins a skip connection to a block stands before its branches, and is always computed."""

    architecture = "hunyuan_dit"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "blocks") == [{"HunYuanDiTBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: b.attn1.out_proj,
            "cross_attn": lambda b: b.attn2.out_proj,
            "mlp": lambda b: b.mlp,
        }
        marks = {"mlp": lambda b: values(b.attn1.Wqkv, b.attn1.num_heads, 3)}
        found = numbered(network, ("blocks", block, branches, {"values": marks}))
        return [b if b.module.skip_linear is None else b._replace(equation=joined_block) for b in found]

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        b = block.module
        return (({"attn": b.attn1, "cross_attn": b.attn2, "mlp": b.mlp}[name],),)

    def lengths(self, network: nn.Module, image: int, text: int) -> tuple[int, int]:
        return image, text + network.text_len_t5  # to which the host fills up the words of mT5


@returns("x")
def block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    c: Tensor | None = None,
    text_states: Tensor | None = None,
    freq_cis_img: tuple[Tensor, Tensor] | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    shift = self.default_modulation(c).unsqueeze(1)
    x = x + branch("attn", lambda x: self.attn1(self.norm1(x) + shift, freq_cis_img)[0], x)
    x = x + branch("cross_attn", lambda x: self.attn2(self.norm3(x), text_states, freq_cis_img)[0], x)
    return x + branch("mlp", lambda x: self.mlp(self.norm2(x)), x, tokenwise=True)


@returns("x")
def joined_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    c: Tensor | None = None,
    text_states: Tensor | None = None,
    freq_cis_img: tuple[Tensor, Tensor] | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    x = self.skip_linear(self.skip_norm(torch.cat((x, skip), dim=-1).to(x.dtype)))
    return block(self, branch, x, c, text_states, freq_cis_img)
