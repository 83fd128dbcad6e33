"""Cosmos-Predict2 (https://github.com/nvidia-cosmos/cosmos-predict2) and Anima, whose network is the same behind a text adapter."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class CosmosPredict2Adapter(Adapter):
    """Anima's text adapter runs once per prompt, before all steps: it is left to the host."""

    architecture = "cosmos_predict2"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "blocks") == [{"Block"}] and hasattr(network, "patch_temporal")

    def patches(self, network: nn.Module, latent: tuple[int, ...]) -> int:
        size = (network.patch_temporal, network.patch_spatial, network.patch_spatial)
        return math.prod(-(-n // p) for n, p in zip(latent[1:], size, strict=True))

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.self_attn, "cross_attn": lambda b: b.cross_attn, "mlp": lambda b: b.mlp}
        marks = {name: lambda b: values(b.self_attn.v_proj, b.self_attn.n_heads) for name in ("cross_attn", "mlp")}
        return numbered(network, ("blocks", block, branches, {"values": marks}))

    def rows(self, hidden: Tensor) -> Tensor:
        """Blocks and MLPs keep the tokens of a video in a grid, (B, T, H, W, D)."""
        return hidden.flatten(1, -2)

    def heeds(self, patch: Callable) -> bool:
        return type(patch).__name__ in ("AnimaLLLiteAttentionPatch", "AnimaLLLiteMLPPatch")


@returns("x_B_T_H_W_D")
def block(
    self: nn.Module,
    branch: Branch,
    x_B_T_H_W_D: Tensor,
    emb_B_T_D: Tensor,
    crossattn_emb: Tensor,
    rope_emb_L_1_1_D: Tensor | None = None,
    adaln_lora_B_T_3D: Tensor | None = None,
    extra_per_block_pos_emb: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    x, emb, options = x_B_T_H_W_D, emb_B_T_D, transformer_options
    space, steady = x.shape[1:4], emb.shape[1] == 1  # else each frame has its own noise level
    patches = options.get("patches", {})
    if extra_per_block_pos_emb is not None:
        x = x + extra_per_block_pos_emb
    x = x.flatten(1, 3)

    def modulation(of: nn.Module) -> tuple[Tensor, ...]:
        """Shift, scale and gate, (B, 1, D), or (B, T, 1, D)."""
        found = of(emb) if adaln_lora_B_T_3D is None else of(emb) + adaln_lora_B_T_3D
        return (found if steady else found.unsqueeze(2)).chunk(3, dim=-1)

    def by_frame(x: Tensor) -> Tensor:
        """(B, T, H * W, D) where each frame is modulated by its own."""
        return x if steady else x.unflatten(1, (space[0], -1))

    shift_a, scale_a, gate_a = modulation(self.adaln_modulation_self_attn)
    shift_c, scale_c, gate_c = modulation(self.adaln_modulation_cross_attn)
    shift_m, scale_m, gate_m = modulation(self.adaln_modulation_mlp)

    def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return (
            (by_frame(x) * (1 + scale) + shift).to(emb.dtype).view_as(x)
        )  # x is in float32 where branches compute in float16

    def attention(x: Tensor) -> Tensor:
        x = modulate(self.layer_norm_self_attn(x), shift_a, scale_a)
        return self.self_attn(x, None, rope_emb=rope_emb_L_1_1_D, transformer_options=options)

    def cross_attention(x: Tensor) -> Tensor:
        x = modulate(self.layer_norm_cross_attn(x), shift_c, scale_c)
        return self.cross_attn(x, crossattn_emb, rope_emb=rope_emb_L_1_1_D, transformer_options=options)

    def mlp(x: Tensor) -> Tensor:
        x = modulate(self.layer_norm_mlp(x), shift_m, scale_m)
        if "mlp_patch" in patches:
            args = {"x": x.unflatten(1, space), "transformer_options": options}
            for patch in patches["mlp_patch"]:
                args = patch(args)
            x = args["x"].flatten(1, 3)
        return self.mlp(x)

    def added(x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        return by_frame(x).addcmul(gate.to(x.dtype), by_frame(out.to(x.dtype))).view_as(x)

    x = added(x, gate_a, branch("attn", attention, x))
    # Control for every token of the picture takes no fewer tokens.
    x = added(x, gate_c, branch("cross_attn", cross_attention, x, tokenwise=steady and not patches.get("attn2_patch")))
    x = added(x, gate_m, branch("mlp", mlp, x, tokenwise=steady and not patches.get("mlp_patch")))
    return x.unflatten(1, space)
