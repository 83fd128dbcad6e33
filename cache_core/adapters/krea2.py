"""Krea 2 (https://huggingface.co/krea/Krea-2-Raw): text and image as one sequence; a block adds its own to one modulation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class Krea2Adapter(Adapter):
    """The blocks that fuse the layers of the text encoder know no noise level: they are left to the host."""

    architecture = "krea2"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "blocks") == [{"SingleStreamBlock"}] and hasattr(network, "txtfusion")

    def references(self, network: nn.Module, cond: dict) -> Iterable[Tensor]:
        """The network takes none where nobody says how they are placed."""
        return super().references(network, cond) if cond.get("reference_latents_method") else ()

    def image(self, network: nn.Module, latents: list[tuple[int, ...]]) -> int:
        """Up to ComfyUI 0.27 it takes none at all."""
        return super().image(network, latents if hasattr(network, "default_ref_method") else latents[:1])

    def patches(self, network: nn.Module, latent: tuple[int, ...]) -> int:
        *_, height, width = latent
        return -(-height // network.patch) * -(-width // network.patch)

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        return image + text

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.attn, "mlp": lambda b: b.mlp}
        marks = {"mlp": lambda b: values(b.attn.wv, b.attn.kvheads)}
        return numbered(network, ("blocks", single_stream_block, branches, {"values": marks}))

    def writes(self, kwargs: dict) -> bool:
        return kwargs.get("timestep_zero_index") is not None


@returns("x")
def single_stream_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    vec: Tensor,
    freqs: Tensor,
    mask: Tensor | None = None,
    timestep_zero_index: int | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    clean = timestep_zero_index  # tokens from here on are noise-free references, whose modulation follows in vec

    def per_token(modulation: Tensor) -> Tensor:
        """Made where it is used: all six at once would be as large as the block's own work."""
        if clean is None:
            return modulation
        noisy, free = modulation.chunk(2)
        return torch.cat((noisy.expand(-1, clean, -1), free.expand(-1, x.shape[1] - clean, -1)), dim=1)

    scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.mod(vec)

    def attention(x: Tensor) -> Tensor:
        modulated = (1 + per_token(scale_a)) * self.prenorm(x) + per_token(shift_a)
        return self.attn(modulated, freqs, mask, transformer_options=transformer_options)

    def mlp(x: Tensor) -> Tensor:
        return self.mlp((1 + per_token(scale_m)) * self.postnorm(x) + per_token(shift_m))

    x = x + per_token(gate_a) * branch("attn", attention, x)
    return x + per_token(gate_m) * branch("mlp", mlp, x, tokenwise=clean is None)
