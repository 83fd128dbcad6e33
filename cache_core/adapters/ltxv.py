"""LTX-Video (arXiv 2501.00103)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class LTXVAdapter(Adapter):
    architecture = "ltxv"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "transformer_blocks") == [{"BasicTransformerBlock"}] and hasattr(network, "patchify_proj")

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.attn1, "cross_attn": lambda b: b.attn2, "mlp": lambda b: b.ff}
        marks = {name: lambda b: values(b.attn1.to_v, b.attn1.heads) for name in ("cross_attn", "mlp")}
        return numbered(network, ("transformer_blocks", transformer_block, branches, {"values": marks}))


@returns("x")
def transformer_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    context: Tensor | None = None,
    attention_mask: Tensor | None = None,
    timestep: Tensor | None = None,
    pe: tuple | None = None,
    transformer_options: dict = NO_OPTIONS,
    self_attention_mask: object = None,
    prompt_timestep: Tensor | None = None,
) -> Tensor:
    from comfy.ldm.common_dit import rms_norm
    from comfy.ldm.lightricks.model import apply_cross_attention_adaln

    table = self.scale_shift_table.to(device=x.device, dtype=x.dtype)
    modulation = (table + timestep.unflatten(2, (len(table), -1))).unbind(2)  # timestep (B, 1 or N, 6 D or 9 D)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m, *of_cross = modulation
    steady = timestep.shape[1] == 1  # else each token has its own noise level
    one_text = attention_mask is None or attention_mask.shape[-2] == 1  # else each token sees its own words

    def attention(x: Tensor) -> Tensor:
        x = rms_norm(x) * (1 + scale_a) + shift_a
        return self.attn1(x, pe=pe, mask=self_attention_mask, transformer_options=transformer_options)

    def cross_attention(x: Tensor) -> Tensor:
        if not of_cross:
            return self.attn2(x, context=context, mask=attention_mask, transformer_options=transformer_options)
        shift, scale, _ = of_cross
        of_text = self.prompt_scale_shift_table, prompt_timestep, attention_mask, transformer_options
        return apply_cross_attention_adaln(x, context, self.attn2, shift, scale, 1, *of_text)

    def mlp(x: Tensor) -> Tensor:
        x = rms_norm(x)
        return self.ff(torch.addcmul(x, x, scale_m) + shift_m)

    x = x + gate_a * branch("attn", attention, x)
    seen = branch("cross_attn", cross_attention, x, tokenwise=one_text and (steady or not of_cross))
    x = x + (of_cross[2] * seen if of_cross else seen)
    return torch.addcmul(x, gate_m, branch("mlp", mlp, x, tokenwise=steady))
