"""Small random networks of every architecture that has an adapter, for the contract tests.

One file per architecture. Its CASES map a name to a function without arguments that returns (network, inputs), where
`inputs(step)` gives the keyword arguments of the network's call at that step, the latent first, for two rows that may be
split or reordered along dim 0, or for one where the network takes no more. Host code is imported inside the functions:
`comfy` is importable only once the fixture has run.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

WITHOUT_HOST = {"dit"}


def cases() -> dict[str, tuple[str, Callable]]:
    """Name of the case -> (architecture, function)."""
    files = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")
    return {name: (file, make) for file in files for name, make in import_module(f"{__name__}.{file}").CASES.items()}


def count(given: dict) -> int:
    """The rows of an input."""
    return len(next(value for value in given.values() if isinstance(value, torch.Tensor)))


def latents(given: dict) -> list[tuple[int, ...]]:
    """(C, *space) of an input's latent, or of each of its parts, and of its references."""
    own, beside = next(iter(given.values())), given.get("minimax_payload") or {}
    found = [*own] if isinstance(own, list) else [own]
    found += given.get("ref_latents") or []
    found += [given[name] for name in ("reference_latent", "image_cond") if name in given]
    found += [given["ref_audio"]["tokens"]] if "ref_audio" in given else []
    found += [*beside.get("cond_video_latents", ()), *beside.get("cond_audio_latents", ())]
    return [tuple(latent.shape[1:]) for latent in found]


def text(given: dict) -> int:
    """Tokens of the prompt of an input, as the adapter's `text` counts them."""
    found = (given.get(name) for name in ("context", "lyric_embed", "lyric_token_idx"))
    return sum(part.shape[1] for part in found if part is not None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def opened(network: nn.Module) -> nn.Module:
    """Random weights that keep the size of what passes through, and every gate open."""
    rng = generator(0)
    for name, weight in network.named_parameters():
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3, generator=rng)
        if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
            weight.data += 1
    for values in network.buffers():
        if values.numel() and values.is_floating_point():
            nn.init.normal_(values, std=0.3, generator=rng)
    return network.eval()
