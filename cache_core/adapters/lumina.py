"""Lumina Image 2.0 (arXiv 2503.21758) and Z-Image: text and image as one sequence, normed before and after a branch."""

from __future__ import annotations

from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns


class LuminaAdapter(Adapter):
    """The refiners of text and of reference images know no noise level: they are left to the host."""

    architecture = "lumina"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "noise_refiner", "layers") == [{"JointTransformerBlock"}] * 2

    def lengths(self, network: nn.Module, image: int, text: int) -> tuple[int, int]:
        multiple = network.pad_tokens_multiple or 1
        return -(-image // multiple) * multiple, -(-text // multiple) * multiple

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        return image if block.sites[name].name.startswith("noise_refiner") else image + text

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.attention_norm2, "mlp": lambda b: b.ffn_norm2}
        return numbered(network, *((name, joint_transformer_block, branches) for name in ("noise_refiner", "layers")))

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        return ((block.module.attention if name == "attn" else block.module.feed_forward,),)

    def writes(self, kwargs: dict) -> bool:
        return kwargs.get("timestep_zero_index") is not None


@returns("x")
def joint_transformer_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    x_mask: Tensor | None,
    freqs_cis: Tensor,
    adaln_input: Tensor | None = None,
    timestep_zero_index: list[tuple[int, int]] | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    from comfy.ldm.lumina.model import apply_gate, clamp_fp16, modulate

    scale_a, gate_a, scale_m, gate_m = self.adaLN_modulation(adaln_input).chunk(4, dim=1)
    regions = timestep_zero_index  # tokens (from, to) of another noise level than the rest
    one_level = regions is None

    def attention(x: Tensor) -> Tensor:
        modulated = modulate(self.attention_norm1(x), scale_a, regions)
        out = self.attention(modulated, x_mask, freqs_cis, transformer_options=transformer_options)
        return self.attention_norm2(clamp_fp16(out))

    def mlp(x: Tensor) -> Tensor:
        return self.ffn_norm2(clamp_fp16(self.feed_forward(modulate(self.ffn_norm1(x), scale_m, regions))))

    def gated(gate: Tensor, out: Tensor) -> Tensor:
        """The host's own, which writes to `out` where there are regions."""
        return apply_gate(gate.unsqueeze(1).tanh(), out if one_level else out.clone(), regions)

    x = x + gated(gate_a, branch("attn", attention, x))
    return x + gated(gate_m, branch("mlp", mlp, x, tokenwise=one_level))
