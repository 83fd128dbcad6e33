"""The text-conditional demo model: the host's own Flux, small, on pixels folded into its 16 latent channels."""

from __future__ import annotations

from argparse import Namespace

import shapes
import torch
from dit import written_out
from pack import load_host, load_pack
from torch import Tensor, nn

SIZE = 32


STARTS = (-0.04, 0.04, 0.12, 0.2, 0.44, 0.55, 0.7, 0.8, 0.96)
"""Colour i of the vocabulary is any hue from STARTS[i] to STARTS[i + 1]."""


def colour_name(hue: float) -> str:
    from priorcache.models.words import COLOURS

    hue = hue - 1 if hue >= STARTS[-1] else hue
    return COLOURS[sum(hue >= s for s in STARTS[1:-1])]


def captioned(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Random pictures and prompts such as "red star on blue"; words are left out at random, one in ten says nothing."""
    from priorcache.models.words import SHAPES

    labels = torch.randint(len(SHAPES), (count,), generator=generator)
    pictures, hues, grounds = shapes.render(labels, size, generator)
    draws = torch.rand(count, 4, generator=generator).tolist()
    prompts = []
    for label, hue, ground, (all_, shape, own, other) in zip(
        labels.tolist(), hues.tolist(), grounds.tolist(), draws, strict=True
    ):
        words = [colour_name(hue)] * (own < 0.85) + [SHAPES[label]] * (shape < 0.95)
        words += ["on", colour_name(ground)] * (other < 0.7)
        prompts.append(" ".join(words) if all_ < 0.9 else "")
    return pictures, prompts


class Recipe:
    file = "shapes-flux.safetensors"
    zeroed = ("_mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear")
    small = ("time_in", "vector_in")

    def __init__(self, args: Namespace):
        load_host()
        import comfy.ldm.flux.math
        import comfy.ldm.flux.model

        load_pack()
        from priorcache.models.words import WIDTH

        comfy.model_management.in_training = True  # the host's fast rope has no gradient
        comfy.ldm.flux.math.optimized_attention = lambda q, k, v, heads, **_: written_out(q, k, v)
        self.settings = {
            "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": WIDTH, "context_in_dim": WIDTH,
            "hidden_size": args.hidden, "num_heads": args.hidden // 128, "depth": args.depth[0],
            "depth_single_blocks": args.depth[1], "mlp_ratio": 4.0, "axes_dim": [16, 56, 56], "theta": 10000,
            "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": [],
        }  # fmt: skip
        self.network = comfy.ldm.flux.model.Flux(**self.settings, operations=nn)

    def initialised(self) -> nn.Module:
        """The network with this pack's equations in place of the blocks' forward, which is in place and has no gradient."""
        from priorcache.cache_core.adapters import adapter_for, computing

        for block in adapter_for(self.network).blocks(self.network):
            block.module.forward = lambda *args, b=block, **kwargs: b.equation(b.module, computing, *args, **kwargs)
        return self.network

    @staticmethod
    def hidden(name: str) -> bool:
        return "_blocks." in name and "mod.lin" not in name and "modulation" not in name

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        from priorcache.models.words import encode, fold

        pictures, prompts = captioned(count, SIZE, generator)
        context, pooled = encode(prompts)
        return fold(pictures), {"context": context, "y": pooled}

    def noised(self, pictures: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rectified flow: on the straight line from picture to noise the velocity is their difference."""
        s = t[:, None, None, None]
        return (1 - s) * pictures + s * noise, t, noise - pictures

    def stored(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k.replace("_norm.weight", "_norm.scale"): v for k, v in weights.items()}

    def loaded(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k.replace("_norm.scale", "_norm.weight"): v for k, v in weights.items()}

    def metadata(self) -> dict[str, str]:
        return {}

    def description(self) -> dict:
        return self.settings
