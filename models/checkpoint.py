"""Reads a DiT checkpoint: what it is, in the original key layout or in that of diffusers' DiTTransformer2DModel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import PriorCacheError, excerpt, shown
from .dit import DiT, DiTConfig

PUBLISHED_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Hidden size -> heads of DiT-S, B, L and XL: the one fact that no tensor shape tells."""

PREFIXES = ("", "model.", "module.", "model.diffusion_model.")
MOST_BLOCKS = 1000
EMBEDDINGS = ("auto", "original", "diffusers")
PREDICTIONS = ("auto", "epsilon", "v_prediction")


class CheckpointError(PriorCacheError):
    """A file that is not a class-conditional DiT, or one whose architecture cannot be told."""


def read(
    weights: Mapping[str, Tensor],
    heads: int = 0,
    embedding: str = "auto",
    metadata: Mapping[str, str] | None = None,
    prediction: str = "auto",
):
    """(DiTConfig, state dict in the original layout) of a checkpoint in either layout.

    heads: 0 takes them from the metadata key "num_heads", else from the published sizes. embedding: which timestep
    frequencies, "auto" meaning those of the library whose layout the file has. prediction: what the network was
    trained to predict, "auto" meaning the metadata key "prediction_type", else noise. Raises CheckpointError.
    """
    plain(weights)
    weights = without_prefix(weights, "final_layer.linear.weight", "proj_out_2.weight")
    if weights is None:
        raise CheckpointError(
            "not a class-conditional DiT: neither final_layer.linear.weight (original layout) nor proj_out_2.weight "
            "(diffusers layout) is in it. Text-to-image models are loaded with ComfyUI's own loaders."
        )
    diffusers = "transformer_blocks.0.norm1.linear.weight" in weights
    if diffusers:
        weights = from_diffusers(weights)
    metadata = metadata or {}
    shift = 1.0 if _diffusers_frequencies(embedding, diffusers) else 0.0
    config = _config(weights, heads, metadata, shift, prediction_of(prediction, metadata))
    return config, checked(weights, DiT(config, device="meta"))


def plain(weights: object) -> None:
    """Raise CheckpointError on anything but a table of tensors."""
    table = isinstance(weights, Mapping)
    if not table or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise CheckpointError("the file holds something other than a plain table of tensors; export the bare weights")


def prediction_of(asked: str, metadata: Mapping[str, str]) -> str:
    found = metadata.get("prediction_type", "epsilon") if asked == "auto" else asked
    if found not in PREDICTIONS[1:]:
        raise CheckpointError(f"prediction {shown(found)} is unknown; choose one of {', '.join(PREDICTIONS[1:])}")
    return found


def _diffusers_frequencies(embedding: str, diffusers: bool) -> bool:
    if embedding not in EMBEDDINGS:
        raise CheckpointError(
            f"timestep embedding {shown(embedding)} is unknown; choose one of {', '.join(EMBEDDINGS)}"
        )
    return diffusers if embedding == "auto" else embedding == "diffusers"


def without_prefix(weights: Mapping[str, Tensor], *marks: str) -> dict[str, Tensor] | None:
    """The weights under the names that a network has itself, judged by one of these being there; None without any."""
    for prefix in PREFIXES:
        if any(f"{prefix}{mark}" in weights for mark in marks):
            return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    return None


def from_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names for a diffusers state dict. Its per-block copies of the embedders must be identical."""
    embedders: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    simple = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
    }
    inside = {
        "norm1.linear": "adaLN_modulation.1",
        "attn1.to_out.0": "attn.proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
    }
    shared = {
        "timestep_embedder.linear_1": "t_embedder.mlp.0",
        "timestep_embedder.linear_2": "t_embedder.mlp.2",
        "class_embedder.embedding_table": "y_embedder.embedding_table",
    }
    for key, value in weights.items():
        stem, _, kind = key.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem)
        if stem in simple:
            out[f"{simple[stem]}.{kind}"] = value
        elif block is None:
            continue  # buffers that are computed
        elif block[2] in inside:
            out[f"blocks.{block[1]}.{inside[block[2]]}.{kind}"] = value
        elif block[2] in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
            continue  # joined below
        elif (embedder := block[2].removeprefix("norm1.emb.")) not in shared:
            raise CheckpointError(f"{excerpt(key)} does not belong in a DiT block: this is another architecture")
        else:
            name = f"{shared[embedder]}.{kind}"
            if name in embedders and not _same(embedders[name], value):
                raise CheckpointError(
                    f"block {excerpt(block[1])} has its own {excerpt(name)}; only models that share one embedder are DiT"
                )
            embedders[name] = value
    for i in range(depth_of(out)):
        for kind in ("weight", "bias"):
            parts = [weights.get(f"transformer_blocks.{i}.attn1.to_{n}.{kind}") for n in "qkv"]
            if any(p is None for p in parts):
                raise CheckpointError(f"transformer_blocks.{i}.attn1 lacks to_q, to_k or to_v {kind}")
            if len({(p.shape, p.dtype) for p in parts}) > 1:
                raise CheckpointError(
                    f"transformer_blocks.{i}.attn1 has to_q, to_k and to_v of different shapes or types"
                )
            out[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return out | embedders


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def depth_of(weights: Mapping[str, Tensor]) -> int:
    found = {int(m[1]) for k in weights if (m := re.match(r"blocks\.(\d{1,6})\.", k))}
    if len(found) > MOST_BLOCKS:
        raise CheckpointError(f"{len(found)} blocks are present; at most {MOST_BLOCKS} are loaded")
    if found != set(range(len(found))) or not found:
        raise CheckpointError(f"blocks {shown(sorted(found))} are present; a DiT has blocks 0, 1, 2, ... without gaps")
    return len(found)


def _config(
    weights: Mapping[str, Tensor], heads: int, metadata: Mapping[str, str], shift: float, prediction: str
) -> DiTConfig:
    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in weights:
            raise CheckpointError(
                f"{name} is missing: the file is incomplete, or not a class-conditional DiT; load other models with the "
                "loader of their own architecture"
            )
        if weights[name].ndim != dims:
            raise CheckpointError(f"{name} has shape {tuple(weights[name].shape)}; {dims} dimensions were expected")
        return tuple(weights[name].shape)

    hidden, channels, patch, patch_w = shape("x_embedder.proj.weight", 4)
    rows, _ = shape("final_layer.linear.weight", 2)
    labels, _ = shape("y_embedder.embedding_table.weight", 2)
    if patch != patch_w or rows not in (patch * patch * channels, 2 * patch * patch * channels):
        raise CheckpointError(
            f"x_embedder has patch {patch} x {patch_w}, {channels} channels; final_layer has {rows} rows"
        )
    if min(hidden, channels, patch, labels - 1) < 1 or hidden % 4:
        raise CheckpointError(
            f"hidden size {hidden}, {channels} channels, patch {patch}, {labels} labels: not a usable DiT"
        )
    grid = None
    if "pos_embed" in weights:
        tokens = shape("pos_embed", 3)[1]
        grid = math.isqrt(tokens)
        if grid * grid != tokens:
            raise CheckpointError(f"pos_embed has {tokens} tokens, which is not a square grid")
    return DiTConfig(
        hidden_size=hidden,
        depth=depth_of(weights),
        num_heads=heads_of(hidden, heads, metadata),
        patch_size=patch,
        in_channels=channels,
        num_classes=labels - 1,
        learn_sigma=rows == 2 * patch * patch * channels,
        grid_size=grid,
        frequency_shift=shift,
        prediction=prediction,
    )


def heads_of(hidden: int, asked: int, metadata: Mapping[str, str]) -> int:
    told = str(metadata.get("num_heads", ""))
    heads = (
        asked
        or (int(told) if told.isascii() and told.isdigit() and len(told) < 6 else 0)
        or PUBLISHED_HEADS.get(hidden, 0)
    )
    if not heads:
        raise CheckpointError(
            f"hidden size {hidden} is not one of the published ones ({', '.join(map(str, PUBLISHED_HEADS))}) and the file "
            "does not say how many attention heads it has: set 'heads' on the loader"
        )
    if heads < 0 or hidden % heads:
        raise CheckpointError(f"{shown(heads)} heads do not divide hidden size {hidden}: set 'heads' on the loader")
    return heads


def checked(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Exactly the tensors of a network, each of the right shape; a message names the first that is not."""
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    for name, shape in wanted.items():
        if name not in weights:
            raise CheckpointError(f"{name} is missing; expected shape {shape}")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(f"{name} has shape {tuple(weights[name].shape)}; expected {shape}")
        if not weights[name].is_floating_point():
            raise CheckpointError(f"{name} holds {weights[name].dtype}; floating-point numbers were expected")
    if strange := sorted(k for k in weights if k.startswith("blocks.") and k not in wanted):
        raise CheckpointError(f"{excerpt(strange[0])} does not belong in such a block: this is another architecture")
    return {name: weights[name] for name in wanted}
