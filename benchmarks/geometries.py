"""The networks of `speed` at their published sizes, with random weights in bfloat16; smaller ones for a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .machine import device
from .overhead import Ground, built, randomised, texts


def dit(size: int) -> Callable[[bool], Ground]:
    def make(full: bool) -> Ground:
        from ..models import host
        from ..models.dit import DiT, DiTConfig
        from ..nodes.dit import conditioning

        depth = 28 if full or size == 256 else 4
        config = DiTConfig(1152, depth, 16, 2, 4, 1000, learn_sigma=True, grid_size=size // 16)
        with torch.inference_mode():
            network = DiT(config, dtype=torch.bfloat16, device=device())
            randomised(network)
            # where the host is asked, it takes float32 on a CPU and float16 on an accelerator
            model = host.from_weights(config, network.state_dict(), torch.bfloat16 if full else None)
        prompts = [conditioning(torch.tensor([n])) for n in (1, -1)]
        return Ground(model, torch.zeros(1, 4, size // 8, size // 8), prompts, (size // 16) ** 2)

    return make


def pixart(full: bool) -> Ground:
    side, depth = (128, 28) if full else (64, 4)
    model = built(
        "PixArtSigma", torch.bfloat16, image_model="pixart_sigma", hidden_size=1152, num_heads=16, depth=depth, patch_size=2,
        caption_channels=4096, input_size=128, pe_interpolation=2, micro_condition=False, model_max_length=300,
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 4, side, side), texts(300, 4096), (side // 2) ** 2)


def flux(full: bool) -> Ground:
    side, (double, single), text = (128, (19, 38), 512) if full else (32, (1, 2), 256)
    model = built(
        "Flux", torch.bfloat16, image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096,
        hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=double, depth_single_blocks=single, axes_dim=[16, 56, 56],
        theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 16, side, side), texts(text, 4096, 768), (side // 2) ** 2)


def sd3(full: bool) -> Ground:
    side, blocks = (128, 24) if full else (32, 3)
    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}
    model = built(
        "SD3", torch.bfloat16, in_channels=16, pos_embed_scaling_factor=None, depth=24, num_blocks=blocks, input_size=None,
        adm_in_channels=2048, num_patches=384**2, pos_embed_max_size=384, qk_norm="rms", context_embedder_config=context,
        x_block_self_attn_layers=list(range(13)),
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 16, side, side), texts(333, 4096, 2048), (side // 2) ** 2)


NETWORKS: dict[str, tuple[Callable[[bool], Ground], str]] = {
    "DiT-XL/2 256": (dit(256), "as published"),
    "DiT-XL/2 512": (dit(512), "4 of its 28 blocks"),
    "PixArt-Sigma": (pixart, "4 of its 28 blocks, 512 x 512"),
    "Flux.1-dev": (flux, "1 + 2 of its 19 + 38 blocks, 256 x 256, 256 tokens of text"),
    "SD3.5-medium": (sd3, "3 of its 24 blocks, 256 x 256"),
}
"""How a network is made, at full size or for a CPU, and what is smaller there."""
