"""JoyAI-Image (https://github.com/jdopensource/JoyAI-Image-Edit): two streams that meet in attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class JoyImageAdapter(Adapter):
    architecture = "joyimage"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "double_blocks") == [{"JoyImageTransformerBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: (b.attn.txt_attn_proj, b.attn.img_attn_proj),
            "img_mlp": lambda b: b.img_mlp,
            "txt_mlp": lambda b: b.txt_mlp,
        }
        marks = {
            "img_mlp": lambda b: values(b.attn.img_attn_qkv, b.attn.num_attention_heads, 3),
            "txt_mlp": lambda b: values(b.attn.txt_attn_qkv, b.attn.num_attention_heads, 3),
        }
        return numbered(network, ("double_blocks", transformer_block, branches, {"values": marks}))

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        if name != "attn":
            return super().work(block, name)
        a = block.module.attn
        return (a.txt_attn_qkv, a.txt_attn_proj), (a.img_attn_qkv, a.img_attn_proj)


@returns("hidden_states", "encoder_hidden_states", picture="hidden_states")
def transformer_block(
    self: nn.Module,
    branch: Branch,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Tensor,
    transformer_options: dict = NO_OPTIONS,
) -> tuple[Tensor, Tensor]:
    img, txt = hidden_states, encoder_hidden_states
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (m.unsqueeze(1) for m in self.img_mod(temb))
    of_txt = (m.unsqueeze(1) for m in self.txt_mod(temb))
    txt_shift_a, txt_scale_a, txt_gate_a, txt_shift_m, txt_scale_m, txt_gate_m = of_txt

    def attention(img: Tensor) -> Tensor:
        of_img, of_txt = self.attn(
            self.img_norm1(img) * (1 + scale_a) + shift_a,
            self.txt_norm1(txt) * (1 + txt_scale_a) + txt_shift_a,
            image_rotary_emb,
            transformer_options=transformer_options,
        )
        return torch.cat((of_txt, of_img), dim=1)

    def img_mlp(img: Tensor) -> Tensor:
        return self.img_mlp(self.img_norm2(img) * (1 + scale_m) + shift_m)

    def txt_mlp(txt: Tensor) -> Tensor:
        return self.txt_mlp(self.txt_norm2(txt) * (1 + txt_scale_m) + txt_shift_m)

    txt_seen, img_seen = branch("attn", attention, img).split((txt.shape[1], img.shape[1]), dim=1)
    img = img + gate_a * img_seen
    txt = txt + txt_gate_a * txt_seen
    img = img + gate_m * branch("img_mlp", img_mlp, img, tokenwise=True)
    txt = txt + txt_gate_m * branch("txt_mlp", txt_mlp, txt, tokenwise=True)
    return img, txt
