"""MiniMax H3: video and sound in one sequence behind the text, keyframes and references.

The host runs one row at a time, and its hidden states are (N, D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class MiniMaxH3Adapter(Adapter):
    """The refiner of the text, which runs once before sampling, is left to the host."""

    architecture = "minimax_h3"
    prefetches = True

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "blocks") == [{"DiTBlock"}] and hasattr(network, "audio_patch_proj")

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.attn, "mlp": lambda b: b.mlp}
        marks = {"mlp": lambda b: values(b.attn.qkv_proj, b.attn.heads, 3)}
        return numbered(network, ("blocks", dit_block, branches, {"values": marks}))

    def rows(self, hidden: Tensor) -> Tensor:
        return hidden[None]

    def references(self, network: nn.Module, cond: dict) -> list[Tensor]:
        given = [*(cond.get("minimax_keyframes") or ()), *(cond.get("minimax_refs") or ())]
        found = (part.get(name) for part in given for name in ("latent", "audio_latent"))
        return [latent for latent in found if latent is not None]

    def patches(self, network: nn.Module, latent: tuple[int, ...]) -> int:
        """Of a sound (C, left and right, T) every frame of either side is a token."""
        return latent[1] * latent[2] if len(latent) == 3 else super().patches(network, latent)

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        return image + text

    def attended(self, block: Block, name: str) -> int:
        return block.module.attn.heads * block.module.attn.head_dim


@returns("x")
def dit_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    t_emb: Tensor,
    mod_segments: list[tuple[int, int, int]],
    rope_freqs: Tensor,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    from comfy.ldm.minimax.model import _mod_scale_shift

    segments, options = mod_segments, transformer_options  # (first token, end, row of the modulation)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaln_proj(t_emb)

    def attention(x: Tensor) -> Tensor:
        modulated = _mod_scale_shift(self.norm1(x[0]), shift_a, scale_a, segments)
        return self.attn(modulated, rope_freqs=rope_freqs, transformer_options=options)[None]

    def mlp(modulated: Tensor) -> Tensor:
        return self.mlp(modulated[0])[None]

    x = _gated(x, gate_a, branch("attn", attention, x[None])[0], segments)
    # Noise level and modality are of the token's place, so modulation comes before the MLP, which knows no places.
    modulated = _mod_scale_shift(self.norm2(x), shift_m, scale_m, segments)
    return _gated(x, gate_m, branch("mlp", mlp, modulated[None], tokenwise=True)[0], segments)


def _gated(x: Tensor, gate: Tensor, out: Tensor, segments: list[tuple[int, int, int]]) -> Tensor:
    """x + gate * out, written to x as the host's own block does; to a copy where a gradient needs what was there."""
    from comfy.ldm.minimax.model import _mod_gate

    return _mod_gate(x.clone() if torch.is_grad_enabled() else x, gate, out, segments)
