"""PixArt of any width inside ComfyUI, whose own loader knows the published width of 1152 alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import torch
from comfy.ldm.pixart.pixartms import PixArtMS
from torch import Tensor

from ..errors import shown
from .checkpoint import CheckpointError, checked, depth_of, heads_of, plain, prediction_of, without_prefix
from .host import PREDICTIONS, opened, placed

SIZED = {
    "x_embedder.proj.weight": 4,
    "y_embedder.y_embedding": 2,
    "t_block.1.weight": 2,
    "final_layer.linear.weight": 2,
}
"""Tensors that tell sizes, and their dimensions."""

CHANNELS = {3: "pixels", 4: "latents of a VAE"}


class _Settings(comfy.supported_models.PixArtAlpha):
    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.PixArt(self, PREDICTIONS[self.prediction], device=device).eval()


def load(path: str, heads: int = 0, dtype: torch.dtype | None = None, prediction: str = "auto", disable_dynamic=False):
    """A ModelPatcher from a .safetensors or .pt file in the original key layout. Raises CheckpointError, naming the file."""
    try:
        weights, metadata = opened(path)
        config, weights = read(weights, metadata, heads)
        prediction_type = prediction_of(prediction, metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{Path(path).name}: {error}") from None
    patcher = from_weights(config, weights, prediction_type, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load, (path, heads, dtype, prediction))
    return patcher


def from_weights(config: dict, weights: dict[str, Tensor], prediction="epsilon", dtype=None, disable_dynamic=False):
    """A ModelPatcher around weights in the original layout; `config` is what `read` gave."""
    settings = _Settings({"image_model": "pixart_alpha", **config})
    settings.prediction = prediction
    formats = comfy.latent_formats
    alpha = formats.SD15 if config["micro_condition"] else formats.SDXL
    settings.latent_format = (formats.ChromaRadiance if config["in_channels"] == 3 else alpha)()
    return placed(settings, weights, dtype, disable_dynamic)


def read(weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, heads: int = 0):
    """(arguments of the host's PixArtMS, its state dict) of a checkpoint; sizes come from the shapes of its tensors.

    heads: 0 takes them from the metadata key "num_heads", else from the published width. The metadata key
    "pe_interpolation" is how far positions are stretched. Raises CheckpointError.
    """
    plain(weights)
    metadata = metadata or {}
    weights = without_prefix(weights, "final_layer.linear.weight") or {}
    sizes = {}
    for name, dims in SIZED.items():
        if name not in weights or weights[name].ndim != dims:
            raise CheckpointError(
                f"{name} is missing or not a tensor of {dims} dimensions: this is no PixArt; load it with the loader of its "
                "own architecture"
            )
        sizes[name] = tuple(weights[name].shape)
    hidden, channels, patch, _ = sizes["x_embedder.proj.weight"]
    words, caption = sizes["y_embedder.y_embedding"]
    if channels not in CHANNELS:
        known = " and ".join(f"{n} ({what})" for n, what in CHANNELS.items())
        raise CheckpointError(f"it works on {channels} channels; {known} are known")
    outputs = sizes["final_layer.linear.weight"][0]
    if min(hidden, patch, words, caption, outputs) < 1 or hidden % 4:
        raise CheckpointError(
            f"hidden size {hidden}, patch {patch}, {words} words of width {caption}, {outputs} outputs: not a usable PixArt"
        )
    config = {
        "hidden_size": hidden,
        "depth": depth_of(weights),
        "num_heads": heads_of(hidden, heads, metadata),
        "patch_size": patch,
        "in_channels": channels,
        "pred_sigma": outputs == 2 * patch * patch * channels,
        "caption_channels": caption,
        "model_max_length": words,
        "micro_condition": "csize_embedder.mlp.0.weight" in weights,
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "pe_interpolation": _interpolation(weights, metadata, patch),
    }
    return config, checked(weights, PixArtMS(**config, operations=torch.nn, device="meta"))


def _interpolation(weights: Mapping[str, Tensor], metadata: Mapping[str, str], patch: int) -> int | None:
    """How far positions are stretched; None where the host works it out from the size of the picture."""
    told = metadata.get("pe_interpolation")
    if told is None:
        positions = weights.get("pos_embed")
        if positions is not None and positions.ndim != 3:
            raise CheckpointError(f"pos_embed has shape {tuple(positions.shape)}; 3 dimensions were expected")
        return None if positions is None else math.isqrt(positions.shape[1]) * patch // 64 or None
    if not (told.isascii() and told.isdigit() and len(told) < 4 and int(told) > 0):
        raise CheckpointError(
            f"its metadata says pe_interpolation = {shown(told)}; a whole number from 1 to 999 was expected"
        )
    return int(told)
