"""ERNIE-Image (https://huggingface.co/baidu/ERNIE-Image): image and text as one sequence, modulated alike in all blocks."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class ErnieImageAdapter(Adapter):
    architecture = "ernie_image"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "layers") == [{"ErnieImageSharedAdaLNBlock"}]

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        return image + text

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.self_attention, "mlp": lambda b: b.mlp}
        marks = {"mlp": lambda b: values(b.self_attention.to_v, b.self_attention.heads)}
        return numbered(network, ("layers", shared_adaln_block, branches, {"values": marks}))


@returns("x")
def shared_adaln_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    rotary_pos_emb: Tensor,
    temb: list[Tensor],
    attention_mask: Tensor | None = None,
) -> Tensor:
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = temb  # each (B, 1, D)

    def attention(x: Tensor) -> Tensor:
        modulated = self.adaLN_sa_ln(x) * (1 + scale_a) + shift_a
        return self.self_attention(modulated, attention_mask=attention_mask, image_rotary_emb=rotary_pos_emb)

    def mlp(x: Tensor) -> Tensor:
        return self.mlp(self.adaLN_mlp_ln(x) * (1 + scale_m) + shift_m)

    x = x + gate_a * branch("attn", attention, x)
    return x + gate_m * branch("mlp", mlp, x, tokenwise=True)
