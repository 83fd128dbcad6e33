"""The text-conditional demo model with cross-attention: the host's own PixArt, narrow, velocity prediction on pixels."""

from __future__ import annotations

from argparse import Namespace

import dit
from captions import captioned
from pack import load_host, load_pack
from torch import Tensor, nn

SIZE = 40
"""The host derives positions from the size of the latent, which must be above 32."""


class Recipe(dit.Recipe):
    file = "shapes-pixart.safetensors"
    zeroed = ("cross_attn.proj", "final_layer.linear")
    small = ("y_embedder", "t_embedder", "t_block")

    def __init__(self, args: Namespace):
        load_host()
        import comfy.ldm.pixart.blocks
        from comfy.ldm.pixart.pixartms import PixArtMS

        load_pack()
        from priorcache.models.words import LENGTH, WIDTH

        comfy.ldm.pixart.blocks.optimized_attention = attention
        self.settings = {
            "hidden_size": args.hidden, "depth": args.depth[0], "num_heads": args.hidden // 64, "patch_size": 4,
            "in_channels": 3, "pred_sigma": False, "caption_channels": WIDTH, "model_max_length": LENGTH,
            "micro_condition": False, "pe_interpolation": 1, "class_dropout_prob": 0.0,
        }  # fmt: skip
        self.network = PixArtMS(**self.settings, operations=nn)

    def initialised(self) -> nn.Module:
        return self.network

    @staticmethod
    def hidden(name: str) -> bool:
        return name.startswith("blocks") and "scale_shift_table" not in name

    def batch(self, count: int, generator) -> tuple[Tensor, dict[str, Tensor]]:
        from priorcache.models.words import encode

        pictures, prompts = captioned(count, SIZE, generator)
        return pictures, {"context": encode(prompts)[0]}

    def metadata(self) -> dict[str, str]:
        """What no tensor shape tells."""
        return {
            "num_heads": str(self.settings["num_heads"]),
            "pe_interpolation": str(self.settings["pe_interpolation"]),
            "prediction_type": "v_prediction",
        }

    def description(self) -> dict:
        return self.settings


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, skip_reshape: bool = False) -> Tensor:
    return dit.written_out(q, k, v) if skip_reshape else dit.attention(q, k, v, heads)
