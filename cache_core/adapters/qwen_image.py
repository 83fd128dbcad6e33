"""Qwen-Image (arXiv 2508.02324) and networks of its block: two streams that meet in attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class QwenImageAdapter(Adapter):
    architecture = "qwen_image"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "transformer_blocks") == [{"QwenImageTransformerBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: (b.attn.to_add_out, b.attn.to_out[0]),
            "img_mlp": lambda b: b.img_mlp,
            "txt_mlp": lambda b: b.txt_mlp,
        }
        marks = {
            "img_mlp": lambda b: values(b.attn.to_v, b.attn.heads),
            "txt_mlp": lambda b: values(b.attn.add_v_proj, b.attn.heads),
        }
        return numbered(network, ("transformer_blocks", transformer_block, branches, {"values": marks}))

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        if name != "attn":
            return super().work(block, name)
        a = block.module.attn
        return (a.add_q_proj, a.add_k_proj, a.add_v_proj, a.to_add_out), (a.to_q, a.to_k, a.to_v, a.to_out[0])


@returns("encoder_hidden_states", "hidden_states")
def transformer_block(
    self: nn.Module,
    branch: Branch,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    encoder_hidden_states_mask: Tensor | None,
    temb: Tensor,
    image_rotary_emb: Tensor | None = None,
    timestep_zero_index: int | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> tuple[Tensor, Tensor]:
    img, txt, clean = hidden_states, encoder_hidden_states, timestep_zero_index
    img_a, img_m = self.img_mod(temb).chunk(2, dim=-1)  # shift, scale and gate of attention; of the MLP
    txt_a, txt_m = self.txt_mod(temb if clean is None else temb.chunk(2)[0]).chunk(2, dim=-1)

    def gate(modulation: Tensor, clean: int | None = None) -> Tensor | tuple[Tensor, ...]:
        found = modulation.chunk(3, dim=-1)[2].unsqueeze(1)
        return found if clean is None else found.chunk(2)  # tokens from `clean` on are noise-free references

    def attention(img: Tensor) -> Tensor:
        of_img, of_txt = self.attn(
            hidden_states=self._modulate(self.img_norm1(img), img_a, clean)[0],
            encoder_hidden_states=self._modulate(self.txt_norm1(txt), txt_a)[0],
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            image_rotary_emb=image_rotary_emb,
            transformer_options=transformer_options,
        )
        return torch.cat((of_txt, of_img), dim=1)

    def img_mlp(img: Tensor) -> Tensor:
        return self.img_mlp(self._modulate(self.img_norm2(img), img_m, clean)[0])

    def txt_mlp(txt: Tensor) -> Tensor:
        return self.txt_mlp(self._modulate(self.txt_norm2(txt), txt_m)[0])

    seen = branch("attn", attention, img)
    img_seen, txt_seen = seen[:, txt.shape[1] :], seen[:, : txt.shape[1]]
    img = self._apply_gate(img_seen, img, gate(img_a, clean), clean)
    txt = txt + gate(txt_a) * txt_seen
    img = self._apply_gate(branch("img_mlp", img_mlp, img, tokenwise=clean is None), img, gate(img_m, clean), clean)
    txt = torch.addcmul(txt, gate(txt_m), branch("txt_mlp", txt_mlp, txt, tokenwise=True))
    return txt, img
