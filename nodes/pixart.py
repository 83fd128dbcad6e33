"""Load a PixArt of any width."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..models.checkpoint import PREDICTIONS
from .dit import DTYPES, weight_dtype
from .files import located
from .types import LOADERS


class PriorCacheLoadPixArt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheLoadPixArt",
            display_name="Load PixArt (any width)",
            category=LOADERS,
            description="Loads a PixArt of any size from models/diffusion_models. ComfyUI's own loader takes the published width of 1152 only.",
            search_aliases=["pixart loader", "small pixart"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A .safetensors or .pt file in models/diffusion_models, in the original key layout. Every size is read from it.",
                ),
                io.Int.Input(
                    "heads",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Attention heads. 0 takes them from the file's metadata or from the published width; set it only for other models.",
                ),
                weight_dtype(),
                io.Combo.Input(
                    "prediction",
                    options=list(PREDICTIONS),
                    default="auto",
                    tooltip="What the network was trained to predict. auto: as the file's metadata says, else noise (epsilon), as the published PixArts do.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The diffusion model.")],
        )

    @classmethod
    def execute(cls, model_name: str, heads: int, weight_dtype: str, prediction: str) -> io.NodeOutput:
        from ..models.pixart import load

        path = located("diffusion_models", model_name)
        return io.NodeOutput(load(path, heads, DTYPES[weight_dtype], prediction))
