"""Kandinsky 5 (arXiv 2511.14993), of video and of pictures."""

from __future__ import annotations

from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class Kandinsky5Adapter(Adapter):
    """The blocks of the text alone, which are two and short, are left to the host."""

    architecture = "kandinsky5"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "visual_transformer_blocks") == [{"TransformerDecoderBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: b.self_attention,
            "cross_attn": lambda b: b.cross_attention,
            "mlp": lambda b: b.feed_forward,
        }
        marks = {
            name: lambda b: values(b.self_attention.to_value, b.self_attention.num_heads)
            for name in ("cross_attn", "mlp")
        }
        return numbered(network, ("visual_transformer_blocks", decoder_block, branches, {"values": marks}))


@returns("visual_embed")
def decoder_block(
    self: nn.Module,
    branch: Branch,
    visual_embed: Tensor,
    text_embed: Tensor,
    time_embed: Tensor,
    freqs: Tensor,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    from comfy.ldm.kandinsky5.model import apply_gate_sum, apply_scale_shift_norm, get_shift_scale_gate

    x, options = visual_embed, transformer_options
    of_attn, of_cross, of_mlp = self.visual_modulation(time_embed).chunk(3, dim=-1)
    shift_a, scale_a, gate_a = get_shift_scale_gate(of_attn)
    shift_c, scale_c, gate_c = get_shift_scale_gate(of_cross)
    shift_m, scale_m, gate_m = get_shift_scale_gate(of_mlp)

    def attention(x: Tensor) -> Tensor:
        x = apply_scale_shift_norm(self.self_attention_norm, x, scale_a, shift_a)
        return self.self_attention(x, freqs, transformer_options=options)

    def cross_attention(x: Tensor) -> Tensor:
        x = apply_scale_shift_norm(self.cross_attention_norm, x, scale_c, shift_c)
        return self.cross_attention(x, text_embed, transformer_options=options)

    def mlp(x: Tensor) -> Tensor:
        return self.feed_forward(apply_scale_shift_norm(self.feed_forward_norm, x, scale_m, shift_m))

    x = apply_gate_sum(x, branch("attn", attention, x), gate_a)
    x = apply_gate_sum(x, branch("cross_attn", cross_attention, x, tokenwise=True), gate_c)
    return apply_gate_sum(x, branch("mlp", mlp, x, tokenwise=True), gate_m)
