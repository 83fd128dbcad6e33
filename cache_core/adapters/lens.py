"""Lens (arXiv 2605.21573): two streams that meet in attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class LensAdapter(Adapter):
    architecture = "lens"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "transformer_blocks") == [{"LensTransformerBlock"}]

    def patches(self, network: nn.Module, latent: tuple[int, ...]) -> int:
        return math.prod(latent[1:])  # latents come as patches

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: (b.attn.to_add_out, b.attn.to_out[0]),
            "img_mlp": lambda b: b.img_mlp,
            "txt_mlp": lambda b: b.txt_mlp,
        }
        marks = {
            "img_mlp": lambda b: values(b.attn.img_qkv, b.attn.heads, 3),
            "txt_mlp": lambda b: values(b.attn.txt_qkv, b.attn.heads, 3),
        }
        return numbered(network, ("transformer_blocks", transformer_block, branches, {"values": marks}))

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        if name != "attn":
            return super().work(block, name)
        a = block.module.attn
        return (a.txt_qkv, a.to_add_out), (a.img_qkv, a.to_out[0])


@returns("encoder_hidden_states", "hidden_states")
def transformer_block(
    self: nn.Module,
    branch: Branch,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    freqs_cis: Tensor,
    attention_mask: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> tuple[Tensor, Tensor]:
    img, txt = hidden_states, encoder_hidden_states
    img_a, img_m = self.img_mod(temb).chunk(2, dim=-1)  # shift, scale and gate of attention; of the MLP
    txt_a, txt_m = self.txt_mod(temb).chunk(2, dim=-1)

    def gate(modulation: Tensor) -> Tensor:
        return modulation.chunk(3, dim=-1)[2].unsqueeze(1)

    def attention(img: Tensor) -> Tensor:
        of_img, of_txt = self.attn(
            hidden_states=self._modulate(self.img_norm1(img), img_a)[0],
            encoder_hidden_states=self._modulate(self.txt_norm1(txt), txt_a)[0],
            freqs_cis=freqs_cis,
            attention_mask=attention_mask,
            transformer_options=transformer_options,
        )
        return torch.cat((of_txt, of_img), dim=1)

    def img_mlp(img: Tensor) -> Tensor:
        return self.img_mlp(self._modulate(self.img_norm2(img), img_m)[0])

    def txt_mlp(txt: Tensor) -> Tensor:
        return self.txt_mlp(self._modulate(self.txt_norm2(txt), txt_m)[0])

    txt_seen, img_seen = branch("attn", attention, img).split((txt.shape[1], img.shape[1]), dim=1)
    img = img + gate(img_a) * img_seen
    txt = txt + gate(txt_a) * txt_seen
    img = img + gate(img_m) * branch("img_mlp", img_mlp, img, tokenwise=True)
    txt = txt + gate(txt_m) * branch("txt_mlp", txt_mlp, txt, tokenwise=True)
    return txt, img
