"""What a cache will hold, told from shapes before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from ..cache_core.adapters import adapter_for, misfit, uncompiled, unwrapped
from ..cache_core.codecs import CODECS
from ..cache_core.policies import CachePolicy
from ..cache_core.run import CacheRun
from ..cache_core.trace import human_bytes

TEXT = 256
"""Tokens of text that `memory` supposes; sampling counts the real ones."""


class Part(NamedTuple):
    """One cond of a sampling run."""

    rows: int
    latents: list[tuple[int, ...]]  # (C, *space): its own, then those of its references
    text: int  # tokens


def expected_bytes(model, run: CacheRun, parts: Iterable[Part]) -> int:
    """What `run` will hold of these conds of a ModelPatcher's model."""
    if not run.keeps:
        return 0
    parts, codec, total = list(parts), run.store.codec, 0
    if run.policy.level == "model" or run.observers:
        total += sum(codec.nbytes((part.rows, *part.latents[0]), torch.float32) for part in parts)
    network = unwrapped(model.model.diffusion_model)
    adapter = adapter_for(network) if run.wants_branches else None
    if adapter is not None:
        dtype = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
        with uncompiled(network):
            for part in parts:
                sizes = adapter.sizes(network, part.latents, part.text).items()
                total += sum(codec.nbytes((part.rows, *size), dtype) for site, size in sizes if run.wants(site))
    return total * run.store.history


def parts_of(guider, shape: tuple[int, ...]) -> list[Part]:
    """The conds that a guider will sample, for latents of this shape (B, C, *space)."""
    whole = guider.model_options.get("disable_cfg1_optimization")
    skipped = {"negative"} if math.isclose(getattr(guider, "cfg", 0.0), 1.0) and not whole else set()
    batch, *latent = shape
    return [
        Part(batch, [tuple(latent), *(tuple(r.shape[1:]) for r in cond.get("reference_latents") or ())], _text(cond))
        for role, conds in guider.conds.items()
        if role not in skipped
        for cond in conds
    ]


def _text(cond: dict) -> int:
    embedding = cond.get("cross_attn")
    return embedding.shape[1] if isinstance(embedding, torch.Tensor) and embedding.ndim == 3 else 0


def memory(model, policy: CachePolicy, measure: str, store: str) -> str:
    """One sentence: what the cache will hold, for usual sizes of what this model makes."""
    run = CacheRun(policy, 1000, measure=measure, codec=CODECS[store])
    if not run.keeps:
        return f"{policy.describe()} keeps nothing."
    if policy.level != "model" and (reason := misfit(model.model.diffusion_model)):
        return f"{policy.describe()} keeps nothing: {reason}."
    form = model.model.latent_format
    down, frames = form.spacial_downscale_ratio, getattr(form, "temporal_downscale_ratio", 4)
    if form.latent_dimensions == 2:
        spaces = {f"{side} x {side}": (side // down,) * 2 for side in (512, 1024)}
    elif form.latent_dimensions == 3:
        spaces = {f"{n} frames of 832 x 480": ((n - 1) // frames + 1, 480 // down, 832 // down) for n in (33, 81)}
    else:
        return f"What {policy.describe()} takes is told in the log when sampling begins."
    pairs = {name: [Part(2, [(form.latent_channels, *space)], TEXT)] for name, space in spaces.items()}
    each = " and ".join(f"{human_bytes(expected_bytes(model, run, pair))} for {name}" for name, pair in pairs.items())
    where = "the device's memory" if run.store.codec.on_device else "the computer's main memory"
    return f"{policy.describe()} takes about {each} of {where}, with a positive and a negative prompt, store = {store}."
