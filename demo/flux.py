"""The text-conditional demo model: the host's own Flux, small, on pixels folded into its 16 latent channels."""

from __future__ import annotations

from argparse import Namespace

import torch
from captions import captioned
from dit import written_out
from pack import load_host, load_pack
from torch import Tensor, nn

SIZE = 32


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
