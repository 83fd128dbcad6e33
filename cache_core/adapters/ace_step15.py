"""ACE-Step 1.5 (arXiv 2602.00744): music, whose tokens see tags, lyrics and timbre by cross-attention."""

from __future__ import annotations

from torch import Tensor, nn

from .ace_step import Music
from .base import Block, Branch, kinds, numbered, returns
from .marks import values


class AceStep15Adapter(Music):
    """The encoders of lyrics, timbre and codes, which know no noise level, are left to the host."""

    architecture = "ace_step15"

    def matches(self, network: nn.Module) -> bool:
        return kinds(getattr(network, "decoder", network), "layers") == [{"AceStepDiTLayer"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.self_attn, "cross_attn": lambda b: b.cross_attn, "mlp": lambda b: b.mlp}
        marks = {name: lambda b: values(b.self_attn.v_proj, b.self_attn.num_kv_heads) for name in ("cross_attn", "mlp")}
        return numbered(network.decoder, ("layers", dit_layer, branches, {"values": marks}))

    def patches(self, network: nn.Module, latent: tuple[int, ...]) -> int:
        return super().patches(network.decoder, latent)

    def attended(self, block: Block, name: str) -> int:
        return block.module.self_attn.o_proj.in_features


@returns("hidden_states")
def dit_layer(
    self: nn.Module,
    branch: Branch,
    hidden_states: Tensor,
    temb: Tensor,
    encoder_hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
) -> Tensor:
    from comfy.model_management import cast_to

    x, table = hidden_states, cast_to(self.scale_shift_table, dtype=temb.dtype, device=temb.device)  # (1, 6, D)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (table + temb).chunk(6, dim=1)

    def attention(x: Tensor) -> Tensor:
        x = self.self_attn_norm(x) * (1 + scale_a) + shift_a
        return self.self_attn(x, position_embeddings=position_embeddings, attention_mask=attention_mask)

    def cross_attention(x: Tensor) -> Tensor:
        x = self.cross_attn_norm(x)
        return self.cross_attn(x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)

    def mlp(x: Tensor) -> Tensor:
        return self.mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m)

    x = x + branch("attn", attention, x) * gate_a
    x = x + branch("cross_attn", cross_attention, x, tokenwise=True)
    return x + branch("mlp", mlp, x, tokenwise=True) * gate_m
