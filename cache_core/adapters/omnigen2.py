"""OmniGen2 (arXiv 2506.18871) and Boogu-Image, which puts blocks of two streams before OmniGen2's own.

All are normed before and after a branch. In a block of two streams, both MLPs take what entered the block, not what
attention made of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..sites import STACK, Site
from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import Mark, values


class OmniGen2Adapter(Adapter):
    """Left to the host: the refiner of text, which knows no noise level, and that of references, which runs with them only."""

    architecture = "omnigen2"

    def matches(self, network: nn.Module) -> bool:
        single, double = {"OmniGen2TransformerBlock"}, {"BooguDoubleStreamBlock"}
        boogu = kinds(network, "noise_refiner", "double_stream_layers", "single_stream_layers")
        return kinds(network, "noise_refiner", "layers") == [single] * 2 or boogu == [single, double, single]

    def blocks(self, network: nn.Module) -> list[Block]:
        single = {"attn": lambda b: b.norm2, "mlp": lambda b: b.ffn_norm2}
        double = {
            "attn": lambda b: (b.instruct_attn_norm, b.img_attn_norm),
            "attn2": lambda b: b.img_self_attn_norm,
            "img_mlp": lambda b: b.img_ffn_norm2,
            "txt_mlp": lambda b: b.instruct_ffn_norm2,
        }
        of_single = {"mlp": lambda b: values(b.attn.to_v, b.attn.kv_heads)}
        of_double = {
            "img_mlp": lambda b: of_values(b.img_instruct_attn, "img_to_v"),
            "txt_mlp": lambda b: of_values(b.img_instruct_attn, "instruct_to_v"),
        }
        lists = [
            ("noise_refiner", single_block, single, {"values": of_single}),
            ("double_stream_layers", double_block, double, {"values": of_double}),
            ("single_stream_layers", single_block, single, {"values": of_single}),
            ("layers", single_block, single, {"values": of_single}),
        ]
        return numbered(network, *(found for found in lists if hasattr(network, found[0])))

    def sizes(self, network: nn.Module, latents: list[tuple[int, ...]], text: int) -> dict[Site, tuple[int, int]]:
        return super().sizes(network, latents, text) | refined(super().sizes(network, latents[:1], text))

    def flops(self, network: nn.Module, latents: list[tuple[int, ...]], text: int) -> dict[Site, int]:
        found = super().flops(network, latents, text) | refined(super().flops(network, latents[:1], text))
        return found | {STACK: sum(flops for site, flops in found.items() if site != STACK)}

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        first = block.sites[name].name.startswith("noise_refiner")
        joined = not first and "mlp" in block.sites  # not a block of two streams
        return image + text if joined else super().tokens(block, name, image, text)

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        b = block.module
        if "mlp" in block.sites:
            return ((b.attn if name == "attn" else b.feed_forward,),)
        if name != "attn":
            alone = {"attn2": b.img_self_attn, "img_mlp": b.img_feed_forward, "txt_mlp": b.instruct_feed_forward}
            return ((alone[name],),)
        a, out = b.img_instruct_attn.processor, b.img_instruct_attn.to_out
        txt = a.instruct_to_q, a.instruct_to_k, a.instruct_to_v, a.instruct_out, out
        return txt, (a.img_to_q, a.img_to_k, a.img_to_v, a.img_out, out)


def refined(told: dict[Site, object]) -> dict[Site, object]:
    """What is told of the blocks that references do not pass."""
    return {site: value for site, value in told.items() if site.name.startswith("noise_refiner")}


def of_values(joint: nn.Module, projection: str) -> Mark:
    return values(getattr(joint.processor, projection), joint.kv_heads)


def modulation(norm: nn.Module, temb: Tensor) -> tuple[Tensor, ...]:
    """What a norm of the host gives beside the normed: four of (B, 1, D)."""
    return norm.linear(norm.silu(temb)).unsqueeze(1).chunk(4, dim=-1)


@returns("hidden_states")
def single_block(
    self: nn.Module,
    branch: Branch,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    image_rotary_emb: Tensor,
    temb: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    x = hidden_states
    scale_a, gate_a, scale_m, gate_m = modulation(self.norm1, temb)

    def attention(x: Tensor) -> Tensor:
        x = self.norm1.norm(x) * (1 + scale_a)
        out = self.attn(x, x, attention_mask, image_rotary_emb, transformer_options=transformer_options)
        return self.norm2(out)

    def mlp(x: Tensor) -> Tensor:
        return self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * (1 + scale_m)))

    x = x + gate_a.tanh() * branch("attn", attention, x)
    return x + gate_m.tanh() * branch("mlp", mlp, x, tokenwise=True)


@returns("img_hidden_states", "instruct_hidden_states", picture="img_hidden_states")
def double_block(
    self: nn.Module,
    branch: Branch,
    img_hidden_states: Tensor,
    instruct_hidden_states: Tensor,
    joint_rotary_emb: Tensor,
    img_rotary_emb: Tensor,
    temb: Tensor,
    joint_attention_mask: Tensor | None = None,
    img_attention_mask: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> tuple[Tensor, Tensor]:
    img, txt, options = img_hidden_states, instruct_hidden_states, transformer_options
    scale_a, gate_a, scale_m, gate_m = modulation(self.img_norm1, temb)
    scale_n, shift_m, *_ = modulation(self.img_norm2, temb)
    scale_b, gate_b, *_ = modulation(self.img_norm3, temb)
    txt_scale_a, txt_gate_a, txt_scale_m, txt_gate_m = modulation(self.instruct_norm1, temb)
    txt_scale_n, txt_shift_m, *_ = modulation(self.instruct_norm2, temb)

    def attention(img: Tensor) -> Tensor:
        of_img = self.img_norm1.norm(img) * (1 + scale_a)
        of_txt = self.instruct_norm1.norm(txt) * (1 + txt_scale_a)
        out = self.img_instruct_attn(
            of_img, of_txt, joint_rotary_emb, joint_attention_mask, transformer_options=options
        )
        of_txt, of_img = out.split((txt.shape[1], img.shape[1]), dim=1)
        return torch.cat((self.instruct_attn_norm(of_txt), self.img_attn_norm(of_img)), dim=1)

    def image_attention(img: Tensor) -> Tensor:
        x = self.img_norm3.norm(img) * (1 + scale_b)
        out = self.img_self_attn(x, x, img_attention_mask, img_rotary_emb, transformer_options=options)
        return self.img_self_attn_norm(out)

    def img_mlp(img: Tensor) -> Tensor:
        x = (1 + scale_m) * (self.img_norm2.norm(img) * (1 + scale_n)) + shift_m
        return self.img_ffn_norm2(self.img_feed_forward(self.img_ffn_norm1(x)))

    def txt_mlp(txt: Tensor) -> Tensor:
        x = (1 + txt_scale_m) * (self.instruct_norm2.norm(txt) * (1 + txt_scale_n)) + txt_shift_m
        return self.instruct_ffn_norm2(self.instruct_feed_forward(self.instruct_ffn_norm1(x)))

    txt_seen, img_seen = branch("attn", attention, img).split((txt.shape[1], img.shape[1]), dim=1)
    img_out = img + gate_a.tanh() * img_seen + gate_b.tanh() * branch("attn2", image_attention, img)
    img_out = img_out + gate_m.tanh() * branch("img_mlp", img_mlp, img, tokenwise=True)
    txt_out = txt + txt_gate_a.tanh() * txt_seen
    txt_out = txt_out + txt_gate_m.tanh() * branch("txt_mlp", txt_mlp, txt, tokenwise=True)
    return img_out, txt_out
