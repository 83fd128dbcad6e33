"""AuraFlow (https://huggingface.co/fal/AuraFlow): a few blocks of two streams, then blocks of one.

A branch is added to the stream that entered the block, so attention reaches the next block through the MLP alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class AuraFlowAdapter(Adapter):
    architecture = "auraflow"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "double_layers", "single_layers") == [{"MMDiTBlock"}, {"DiTBlock"}]

    def lengths(self, network: nn.Module, image: int, text: int) -> tuple[int, int]:
        return image, text + network.register_tokens.shape[1]

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        joined = block.sites[name].name.startswith("single_layers")
        return image + text if joined else super().tokens(block, name, image, text)

    def blocks(self, network: nn.Module) -> list[Block]:
        double = {
            "attn": lambda b: (b.attn.w1o, b.attn.w2o),
            "txt_mlp": lambda b: b.mlpC,
            "img_mlp": lambda b: b.mlpX,
        }
        single = {"attn": lambda b: b.attn, "mlp": lambda b: b.mlp}
        of_double = {
            "txt_mlp": lambda b: values(b.attn.w1v, b.attn.n_heads),
            "img_mlp": lambda b: values(b.attn.w2v, b.attn.n_heads),
        }
        of_single = {"mlp": lambda b: values(b.attn.w1v, b.attn.n_heads)}
        return numbered(
            network,
            ("double_layers", double_block, double, {"values": of_double}),
            ("single_layers", single_block, single, {"values": of_single}),
        )

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        if name != "attn" or len(block.captures[name]) == 1:
            return super().work(block, name)
        a = block.module.attn
        return (a.w1q, a.w1k, a.w1v, a.w1o), (a.w2q, a.w2k, a.w2v, a.w2o)


@returns("c", "x")
def double_block(
    self: nn.Module,
    branch: Branch,
    c: Tensor,
    x: Tensor,
    global_cond: Tensor,
    transformer_options: dict = NO_OPTIONS,
    **_,
) -> tuple[Tensor, Tensor]:
    from comfy.ldm.aura.mmdit import modulate

    c_shift_a, c_scale_a, c_gate_a, c_shift_m, c_scale_m, c_gate_m = self.modC(global_cond).chunk(6, dim=1)
    x_shift_a, x_scale_a, x_gate_a, x_shift_m, x_scale_m, x_gate_m = self.modX(global_cond).chunk(6, dim=1)

    def attention(x: Tensor) -> Tensor:
        of_txt = modulate(self.normC1(c), c_shift_a, c_scale_a)
        of_img = modulate(self.normX1(x), x_shift_a, x_scale_a)
        return torch.cat(self.attn(of_txt, of_img, transformer_options=transformer_options), dim=1)

    def txt_mlp(c: Tensor) -> Tensor:
        return self.mlpC(modulate(self.normC2(c), c_shift_m, c_scale_m))

    def img_mlp(x: Tensor) -> Tensor:
        return self.mlpX(modulate(self.normX2(x), x_shift_m, x_scale_m))

    c_seen, x_seen = branch("attn", attention, x).split((c.shape[1], x.shape[1]), dim=1)
    c_seen = c + c_gate_a.unsqueeze(1) * c_seen
    x_seen = x + x_gate_a.unsqueeze(1) * x_seen
    c = c + c_gate_m.unsqueeze(1) * branch("txt_mlp", txt_mlp, c_seen, tokenwise=True)
    x = x + x_gate_m.unsqueeze(1) * branch("img_mlp", img_mlp, x_seen, tokenwise=True)
    return c, x


@returns("cx")
def single_block(
    self: nn.Module, branch: Branch, cx: Tensor, global_cond: Tensor, transformer_options: dict = NO_OPTIONS, **_
) -> Tensor:
    from comfy.ldm.aura.mmdit import modulate

    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modCX(global_cond).chunk(6, dim=1)

    def attention(cx: Tensor) -> Tensor:
        return self.attn(modulate(self.norm1(cx), shift_a, scale_a), transformer_options=transformer_options)

    def mlp(cx: Tensor) -> Tensor:
        return self.mlp(modulate(self.norm2(cx), shift_m, scale_m))

    seen = cx + gate_a.unsqueeze(1) * branch("attn", attention, cx)
    return cx + gate_m.unsqueeze(1) * branch("mlp", mlp, seen, tokenwise=True)
