"""Load a class-conditional DiT, and tell it which class to draw."""

from __future__ import annotations

import re

import folder_paths
import torch
from comfy_api.latest import io

from ..errors import SettingError, excerpt, shown
from ..models.checkpoint import EMBEDDINGS, PREDICTIONS
from ..models.dit import DiT
from .files import located
from .types import LOADERS

DTYPES = {"default": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_LABELS = 4096


def weight_dtype() -> io.Input:
    return io.Combo.Input(
        "weight_dtype",
        options=list(DTYPES),
        default="default",
        tooltip="Precision of the weights. default lets ComfyUI choose for your hardware.",
    )


class PriorCacheLoadDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheLoadDiT",
            display_name="Load DiT (class-conditional)",
            category=LOADERS,
            description="Loads a class-conditional diffusion transformer (DiT-S/B/L/XL and alike) from models/diffusion_models.",
            search_aliases=["dit loader", "DiT-XL/2", "class conditional"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A .safetensors or .pt file in models/diffusion_models, in the original or the diffusers key layout. Size, patch, resolution and classes are read from it.",
                ),
                io.Int.Input(
                    "heads",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Attention heads. 0 takes them from the file's metadata or from the published sizes; set it only for other models.",
                ),
                io.Combo.Input(
                    "timestep_embedding",
                    options=list(EMBEDDINGS),
                    default="auto",
                    tooltip="Timestep frequencies. auto: as the library whose layout the file has. An original checkpoint that was converted to the diffusers layout is best with 'original'.",
                ),
                weight_dtype(),
                io.Combo.Input(
                    "prediction",
                    options=list(PREDICTIONS),
                    default="auto",
                    optional=True,
                    tooltip="What the network was trained to predict. auto: as the file's metadata says, else noise (epsilon), as all published DiTs do.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The diffusion model.")],
        )

    @classmethod
    def execute(
        cls, model_name: str, heads: int, timestep_embedding: str, weight_dtype: str, prediction: str = "auto"
    ) -> io.NodeOutput:
        from ..models.host import load

        path = located("diffusion_models", model_name)
        return io.NodeOutput(load(path, heads, timestep_embedding, DTYPES[weight_dtype], prediction))


class PriorCacheDiTLabel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheDiTLabel",
            display_name="DiT Class Label",
            category=LOADERS,
            description="What a class-conditional DiT draws: class labels in place of a prompt, and the null class in place of a negative prompt.",
            search_aliases=["class label", "imagenet class", "dit conditioning"],
            inputs=[
                io.String.Input(
                    "labels",
                    default="0",
                    tooltip="Class numbers, one per picture of the batch, repeated as needed: 207, or 0-11, or 3, 7, 7, 20-22.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The classes."),
                io.Conditioning.Output(display_name="negative", tooltip="The null class, for guidance (cfg above 1)."),
            ],
        )

    @classmethod
    def execute(cls, labels: str) -> io.NodeOutput:
        wanted = torch.tensor(parse_labels(labels), dtype=torch.long)
        return io.NodeOutput(conditioning(wanted), conditioning(torch.full_like(wanted, -1)))


def conditioning(labels: torch.Tensor) -> list:
    """CONDITIONING for labels (B,); -1 is the null class. The host wants a text tensor, which stays empty."""
    return [[torch.zeros(1, 1, 1), {"class_labels": labels}]]


def refuse_labels(conds: dict[str, list[dict]], network: torch.nn.Module, error: Exception) -> None:
    """Raise SettingError where sampling ended in this error because a network that reads text was given class labels.

    Afterwards, not before: a label that is never looked at, as the negative one at cfg 1, does no harm.
    """
    roles = [role for role, some in conds.items() if any("class_labels" in cond for cond in some)]
    if roles and not isinstance(network, DiT):
        raise SettingError(
            f"DiT Class Label is connected as {' and '.join(roles)}, and {type(network).__name__} reads text, not class "
            "numbers: connect a prompt in its place (CLIP Text Encode, or Demo Prompt for the demo models), or sample a "
            f"model from Load DiT ({excerpt(error)})"
        ) from error


def parse_labels(text: str) -> list[int]:
    """ "3, 7, 20-22" -> [3, 7, 20, 21, 22]."""
    out: list[int] = []
    parts = [p for p in re.split(r"[,\s]+", text) if p]
    if not parts:
        raise SettingError("DiT Class Label: no label given; write numbers and ranges such as 3, 7, 20-22.")
    for part in parts:
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if not match:
            raise SettingError(
                f"DiT Class Label: {shown(part)} is no class number; write numbers and ranges such as 3, 7, 20-22."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or len(out) + last - first >= MAX_LABELS:
            raise SettingError(
                f"DiT Class Label: range {part!r} runs backwards or makes more than {MAX_LABELS} labels; write the smaller "
                "number first, and fewer."
            )
        out += range(first, last + 1)
    return out
