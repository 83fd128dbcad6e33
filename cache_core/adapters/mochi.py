"""Mochi (https://github.com/genmoai/mochi): two streams of different width that meet in attention, normed after a branch."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class MochiAdapter(Adapter):
    """Attention is two branches, of the picture's and of the text's queries, since their outputs differ in width."""

    architecture = "mochi"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "blocks") == [{"AsymmetricJointBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: b.attn.proj_x,
            "txt_attn": lambda b: b.attn.proj_y if b.update_y else None,
            "img_mlp": lambda b: b.mlp_x,
            "txt_mlp": lambda b: b.mlp_y if b.update_y else None,
        }
        marks = {
            "img_mlp": lambda b: values(b.attn.qkv_x, b.attn.num_heads, 3),
            "txt_mlp": lambda b: values(b.attn.qkv_y, b.attn.num_heads, 3),
        }
        return numbered(network, ("blocks", joint_block, branches, {"values": marks}))

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        a = block.module.attn
        return ((a.qkv_y,), (a.qkv_x, a.proj_x)) if name == "attn" else super().work(block, name)

    def attended(self, block: Block, name: str) -> int:
        return 0 if name == "txt_attn" else super().attended(block, name)  # asked together with the picture's

    def _flops(self, block: Block, name: str, image: int, text: int) -> int:
        further = 4 * text * (2 * image + text) * block.module.attn.dim_x  # what has to do with the text
        return super()._flops(block, name, image, text) + further * (name == "attn")


@returns("x", "y", picture="x")
def joint_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    c: Tensor,
    y: Tensor,
    transformer_options: dict = NO_OPTIONS,
    *,
    crop_y: int,
    rope_cos: Tensor,
    rope_sin: Tensor,
) -> tuple[Tensor, Tensor]:
    from comfy.ldm.genmo.joint_model.asymm_models_joint import modulated_rmsnorm, residual_tanh_gated_rmsnorm
    from comfy.ldm.genmo.joint_model.temporal_rope import apply_rotary_emb_qk_real
    from comfy.ldm.modules.attention import optimized_attention

    attn, options, c = self.attn, transformer_options, nn.functional.silu(c)
    x_scale_a, x_gate_a, x_scale_m, x_gate_m = self.mod_x(c).chunk(4, dim=1)
    y_scale_a, *y_rest = self.mod_y(c).chunk(4 if self.update_y else 1, dim=1)

    @cache
    def projected() -> tuple[Tensor, ...]:
        """Queries of the picture and of the text, keys and values of both, each (B, N, H, D)."""
        of_x = attn.qkv_x(modulated_rmsnorm(x_entered, x_scale_a)).unflatten(-1, (3, attn.num_heads, -1))
        of_y = attn.qkv_y(modulated_rmsnorm(y_entered, y_scale_a)).unflatten(-1, (3, attn.num_heads, -1))
        q_x, k_x, v_x = of_x.unbind(2)
        q_y, k_y, v_y = of_y[:, :crop_y].unbind(2)  # the rest is padding
        q_x, k_x = (apply_rotary_emb_qk_real(of, rope_cos, rope_sin) for of in (attn.q_norm_x(q_x), attn.k_norm_x(k_x)))
        return q_x, attn.q_norm_y(q_y), torch.cat((k_x, attn.k_norm_y(k_y)), 1), torch.cat((v_x, v_y), 1)

    def attended(q: Tensor) -> Tensor:
        q, k, v = (of.transpose(1, 2) for of in (q, *projected()[2:]))
        return optimized_attention(q, k, v, attn.num_heads, skip_reshape=True, transformer_options=options)

    @cache
    def joint() -> tuple[Tensor, ...]:
        """What the picture and the text see, by one attention as in the host."""
        return attended(torch.cat(projected()[:2], 1)).tensor_split((x_entered.shape[1],), 1)

    def attention(_: Tensor) -> Tensor:
        return attn.proj_x(joint()[0])

    def txt_attention(y: Tensor) -> Tensor:
        asked = joint.cache_info().currsize  # else the picture's is reused, and the text attends alone
        seen = joint()[1] if asked else attended(projected()[1])
        return attn.proj_y(nn.functional.pad(seen, (0, 0, 0, y.shape[1] - seen.shape[1])))

    def img_mlp(x: Tensor) -> Tensor:
        return self.mlp_x(modulated_rmsnorm(x, x_scale_m))

    x_entered, y_entered = x, y
    of_x = branch("attn", attention, x)
    of_y = branch("txt_attn", txt_attention, y) if self.update_y else None
    joint.cache_clear()  # as large as what the MLPs take
    projected.cache_clear()
    x = residual_tanh_gated_rmsnorm(x, of_x, x_gate_a)
    del of_x
    x = residual_tanh_gated_rmsnorm(x, branch("img_mlp", img_mlp, x, tokenwise=True), x_gate_m)
    if not self.update_y:  # the last block: its text serves the picture's attention and ends there
        return x, y
    y_gate_a, y_scale_m, y_gate_m = y_rest

    def txt_mlp(y: Tensor) -> Tensor:
        return self.mlp_y(modulated_rmsnorm(y, y_scale_m))

    y = residual_tanh_gated_rmsnorm(y, of_y, y_gate_a)
    del of_y
    y = residual_tanh_gated_rmsnorm(y, branch("txt_mlp", txt_mlp, y, tokenwise=True), y_gate_m)
    return x, y
