"""PixArt, of 28 blocks and width 32, too, sampled with the second-order solver of their commands: 27 steps, as its times are whole then."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.nn import functional

from ...cache_core.policies import FORA, CachePolicy, DuCa, Full, ToCa
from ...priors.published import dit_sigmas
from .source import Case, Source, dealt, sampled, seeded, uniform, weight, wrapped

SIDE, PATCH, WORDS, CFG = 36, 3, 8, 1.5
CONFIG = {
    "hidden_size": 32, "depth": 28, "num_heads": 2, "patch_size": PATCH, "in_channels": 3, "pred_sigma": True,
    "caption_channels": 16, "model_max_length": WORDS, "micro_condition": False,
    "pe_interpolation": 64 // PATCH / (SIDE // PATCH),  # positions are 0, 1, 2 ..., as theirs
}  # fmt: skip


@cache
def weights() -> dict[str, Tensor]:
    """In the original layout, which is the host's, too."""
    from comfy.ldm.pixart.pixartms import PixArtMS

    likes = PixArtMS(**CONFIG, operations=torch.nn, device="meta").state_dict()
    return {name: weight(seeded(seed), like.shape) for seed, (name, like) in enumerate(likes.items())}


def noise() -> Tensor:
    """(1, C, H, W)"""
    return sum(uniform(seeded(seed), 1, 3, SIDE, SIDE) for seed in range(12)) / 2


def texts() -> tuple[Tensor, Tensor]:
    """With and without a prompt: (1, words, width)."""
    return tuple(uniform(seeded(seed), 1, WORDS, CONFIG["caption_channels"]) * math.sqrt(3) for seed in (1, 2))


class Blocks:
    """A mask under which every sequence sees the text of its own."""

    @classmethod
    def from_seqlens(cls, queries: list[int], keys: list[int]) -> Blocks:
        self = cls()
        self.mask = torch.block_diag(*(torch.ones(pair) for pair in zip(queries, keys, strict=True))).log()
        return self

    def materialize(self, shape, dtype, device) -> Tensor:
        return self.mask.to(device, dtype).expand(shape)


def attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, attn_bias: Blocks | None = None) -> Tensor:
    """(B, tokens, heads, width)"""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if attn_bias is None else attn_bias.mask
    return functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


@contextmanager
def stood_in() -> Iterator[None]:
    """For xformers and mmcv, of which their code imports much and uses little."""
    mmcv, xformers = MagicMock(name="mmcv"), MagicMock(name="xformers")
    mmcv.Registry.return_value.register_module.return_value = lambda kind: kind
    xformers.ops.memory_efficient_attention = attention
    xformers.ops.fmha.BlockDiagonalMask = xformers.ops.fmha.attn_bias.BlockDiagonalMask = Blocks
    others = {
        "mmcv": mmcv, "mmcv.runner": mmcv.runner, "mmcv.utils": mmcv.utils, "mmcv.utils.logging": mmcv.utils.logging,
        "xformers": xformers, "xformers.ops": xformers.ops, "xformers.ops.fmha": xformers.ops.fmha,
        "xformers.ops.fmha.attn_bias": xformers.ops.fmha.attn_bias,
    }  # fmt: skip
    own = {name: sys.modules[name] for name in others if name in sys.modules}
    sys.modules.update(others)
    try:
        yield
    finally:
        for name in others:
            del sys.modules[name]
        sys.modules.update(own)


@dataclass(frozen=True)
class OfPixArt(Case):
    """options: told beside what all of these are told."""

    def theirs(self, code: Path) -> Tensor:
        with stood_in(), self.source.opened(code) as module, torch.no_grad():
            known = {name: CONFIG[name] for name in CONFIG if name not in ("micro_condition", "pe_interpolation")}
            network = module.PixArt(SIDE, **known).eval()
            network.load_state_dict(weights() | {"pos_embed": network.pos_embed})
            self.changed()

            def model(x, t, *rest, **kwargs):
                return network.forward_with_dpmsolver(x, t.round(), *rest, **kwargs)  # whole but for rounding

            text, nothing = (words[:, None] for words in texts())
            told = {"model_kwargs": TOLD | self.options}
            solver = import_module("diffusion").DPMS(model, text, nothing, CFG, **told)
            return solver.sample(
                noise(), self.steps, order=2, skip_type="time_uniform", method="multistep", rank=1, **told
            )

    def drawn(self, policy: CachePolicy) -> Tensor:
        from ...models import pixart

        with torch.inference_mode():
            model = pixart.from_weights(CONFIG, dict(weights()), dtype=torch.float32)
            sigmas, prompts = dit_sigmas(self.steps + 1).float(), ([[words, {}]] for words in texts())
            out = sampled(model, policy, noise(), CFG, "dpmpp_2m", sigmas, *prompts)
            return out / (1 + sigmas[-1] ** 2).sqrt()  # as theirs, which ends at the time 0


def caching(name: str) -> ModuleType:
    return import_module(f"diffusion.model.cache_functions.{name}")


def random() -> None:
    """Tokens are chosen by our random scores."""
    dealt(
        caching("cache_cutfresh"),
        lambda now: (now["step"], f"blocks.{now['layer']}.{now['module'].replace('-', '_')}"),
    )


def apart() -> None:
    """Rows with and without the prompt choose for themselves, where theirs choose the same by the mean of what both note."""
    module = caching("score_evaluate")

    def scored(score, *args):
        with patch.object(torch, "split", lambda noted, *_, **__: (noted, noted)):
            both = score(*args)
        return both[: len(both) // 2]

    for name in {"attn_score", "kv_norm_score"} & set(dir(module)):
        wrapped(module, name, scored)


def settled() -> None:
    """What is noted of the attention to the text stays as it was at the last full step."""

    def updated(update, *args, cache_dic, current, **kwargs):
        maps, layer = cache_dic["cross_attn_map"][-1], current["layer"]
        noted = maps[layer]
        maps[layer] = noted.clone()
        update(*args, cache_dic=cache_dic, current=current, **kwargs)
        maps[layer] = noted

    wrapped(import_module("diffusion.model.nets.PixArt"), "update_cache", updated)


TOCA_CODE = Source("Shenyi-Z/ToCa", "PixArt-alpha-ToCa", "diffusion.model.nets.PixArt")
DUCA_CODE = Source("Shenyi-Z/DuCa", "DuCa-PixArt-alpha", "diffusion.model.nets.PixArt")
TOLD = {"force_fresh": "global", "soft_fresh_weight": 0.25, "ratio_scheduler": "ToCa", "test_FLOPs": False}
KINDS = {"random": "random", "small values": "kv-norm", "entropy": "attention"}
"""Our selections -> theirs."""


def tokens(cls: type[ToCa], selection: str, *changes: Callable[[], None]) -> OfPixArt:
    """ToCa and DuCa at the interval and ratio of their commands."""
    source, ratio = (TOCA_CODE, 0.3) if cls is ToCa else (DUCA_CODE, 0.75)
    told = {"cache_type": KINDS[selection], "fresh_ratio": ratio, "fresh_threshold": 3}
    return OfPixArt(source, 27, partial(cls, "pixart", selection=selection, faithful=True), told, changes)


def whole(interval: int, policy: Callable[[], CachePolicy]) -> OfPixArt:
    """ToCa's code where it computes no token alone: FORA, as it says itself, or no cache."""
    told = {"cache_type": "random", "fresh_ratio": 0.0, "fresh_threshold": interval}
    return OfPixArt(TOCA_CODE, 27, policy, told)


CASES = {
    "none, 27 steps": whole(1, Full),
    "FORA N=3": whole(3, partial(FORA, 3, "aligned")),
    "ToCa N=3, random": tokens(ToCa, "random", random),
    "ToCa N=3, entropy": tokens(ToCa, "entropy"),
    "ToCa N=3, entropy, theirs apart and settled": tokens(ToCa, "entropy", apart, settled),
    "DuCa N=3, random": tokens(DuCa, "random", random),
    "DuCa N=3, entropy": tokens(DuCa, "entropy"),
    "DuCa N=3, entropy, theirs apart and settled": tokens(DuCa, "entropy", apart, settled),
    "DuCa N=3, small values": tokens(DuCa, "small values"),
    "DuCa N=3, small values, theirs apart": tokens(DuCa, "small values", apart),
}
