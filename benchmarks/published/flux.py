"""A Flux of 19 double and 38 single blocks, as many as their code counts on, of width 24, sampled with Euler's method, 20 steps."""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ...cache_core.policies import FORA, CachePolicy, DuCa, Full, Taylor, ToCa
from ...cache_core.policies.toca import drawn
from ...cache_core.sites import Site, Step
from ..overhead import built
from .source import Case, Source

CHANNELS, SIDE, PATCH, WORDS, WIDTH = 4, 16, 2, 32, 16
GUIDANCE = 3.5
SHAPE = {
    "vec_in_dim": WIDTH, "context_in_dim": WIDTH, "hidden_size": 24, "mlp_ratio": 2.0, "num_heads": 2, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [4, 4, 4], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip


def weighed(network: nn.Module) -> None:
    """Gives either network the same weights, of which every tensor depends on its name; the host calls a scale weight."""
    with torch.inference_mode():
        for name, weight in network.named_parameters():
            name = name.replace("_norm.weight", "_norm.scale")
            rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            width = math.sqrt(3 / weight[0].numel()) if weight.ndim > 1 else 0.1
            weight.copy_((torch.rand(weight.shape, generator=rng) * 2 - 1) * width + name.endswith(".scale"))


@cache
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noise (B, C, H, W), words (B, L, D), and their summary (B, D), of two pictures."""
    rng = torch.Generator().manual_seed(1)
    shapes = (2, CHANNELS, SIDE, SIDE), (2, WORDS, WIDTH), (2, WIDTH)
    return tuple(sum(torch.rand(shape, generator=rng) for _ in range(12)) - 6 for shape in shapes)


def made(models: ModuleType) -> nn.Module:
    """Their network with these weights."""
    features = CHANNELS * PATCH**2
    network = models.Flux(models.FluxParams(in_channels=features, out_channels=features, **SHAPE)).eval()
    weighed(network)
    return network


@dataclass(frozen=True)
class OfFlux(Case):
    """prepared: called with their network, changes what their code does."""

    @property
    def sigmas(self) -> Tensor:
        return torch.linspace(1, 0, self.steps + 1)

    def theirs(self, code: Path) -> Tensor:
        """Picture by picture, by their loop; the settings that are written in their code are those of the case."""
        with self.source.opened(code) as models, torch.no_grad():
            loop = importlib.import_module("flux.ideas.cache_denoise")
            network, side, init = made(models), SIDE // PATCH, loop.cache_init
            if self.prepared:
                self.prepared(network)

            def told(timesteps):
                kept, current = init(timesteps)
                return kept | self.options, current

            ids = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side)).float()
            with patch.object(loop, "cache_init", told):
                out = [
                    loop.denoise_cache(
                        network, nn.functional.unfold(noise, PATCH, stride=PATCH).mT, ids[None], words, torch.zeros(1, WORDS, 3),
                        summary, self.sigmas.tolist(), GUIDANCE,
                    )
                    for noise, words, summary in zip(*(given.split(1) for given in inputs()), strict=True)
                ]  # fmt: skip
        return nn.functional.fold(torch.cat(out).mT, (SIDE, SIDE), PATCH, stride=PATCH)

    def drawn(self, policy: CachePolicy) -> Tensor:
        """In the units of the network."""
        import comfy.sample
        import comfy.samplers

        from ...nodes.attach import attach

        model = built(
            "Flux", image_model="flux", in_channels=CHANNELS, out_channels=CHANNELS, patch_size=PATCH, txt_ids_dims=[], **SHAPE
        )  # fmt: skip
        weighed(model.model.diffusion_model)
        noise, words, summary = inputs()
        prompt = [[words, {"pooled_output": summary, "guidance": GUIDANCE}]]
        out = comfy.sample.sample_custom(
            attach(model, policy), noise, 1.0, comfy.samplers.sampler_object("euler"), self.sigmas, prompt, prompt,
            torch.zeros_like(noise), disable_pbar=True, seed=0,
        )  # fmt: skip
        return model.model.process_latent_in(out)


def wrapped(module: str, name: str, by: Callable) -> None:
    """Puts by(what was there, ...) in its place."""
    there = importlib.import_module(f"flux.{module}")
    setattr(there, name, partial(by, getattr(there, name)))


def dealt(network: nn.Module) -> None:
    """Random scores are ours, as no two generators agree."""

    def evaluated(evaluate, cache, tokens, current):
        site = Site(f"double_blocks.{current['layer']}.{current['module']}", 0, 0)
        scores = drawn(Step(current["step"], current["num_steps"], 0.0, 0.0), site, tokens.shape[1])
        with patch.object(torch, "rand", lambda rows, *_, **__: scores.expand(rows, -1)):
            return evaluate(cache, tokens, current)

    wrapped("modules.cache_functions.cache_cutfresh", "score_evaluate", evaluated)


def at_once(network: nn.Module) -> None:
    """Order 2 as soon as three outputs are known, which theirs forbids in the first steps."""

    def approximated(approximate, cache_dic, **given):
        approximate(cache_dic={**cache_dic, "first_enhance": 1}, **given)

    wrapped("modules.layers", "derivative_approximation", approximated)


def double_only(network: nn.Module) -> None:
    """No token of a single-stream block is computed anew."""

    def ratio(scheduled, cache, current):
        return 0.0 if current["stream"] == "single_stream" else scheduled(cache, current)

    wrapped("modules.cache_functions.cache_cutfresh", "fresh_ratio_scheduler", ratio)


def aggressive(network: nn.Module) -> None:
    """Every other step skips all blocks, as a comment of theirs has it."""

    def decided(decide, cache_dic, current):
        decide(cache_dic, current)
        if current["type"] == "ToCa" and cache_dic["cache_counter"] % 2:
            current["type"] = "aggressive"

    wrapped("model", "cal_type", decided)


def last_kept(network: nn.Module) -> None:
    """Such a step begins with what the last block gave, and not with what it was given."""

    def kept(block, args, given, out):
        if given["current"]["type"] != "aggressive":
            given["cache_dic"]["cache"][-1]["aggressive_output"] = out

    network.single_blocks[-1].register_forward_hook(kept, with_kwargs=True)


TAYLOR_CODE, TOCA_CODE = (
    Source(f"Shenyi-Z/{name}", f"{folder}/src", "flux.model")
    for name, folder in (("TaylorSeer", "TaylorSeer-FLUX"), ("ToCa", "flux-ToCa"))
)
KINDS = {"random": "random", "large values": "v-norm"}
"""Our selections -> theirs."""


def case(policy: Callable[[], CachePolicy], *changes: Callable, source: Source = TAYLOR_CODE, **told) -> OfFlux:
    """Told what differs from reusing what was computed last."""
    plain = {
        "cache_type": "random",
        "fresh_ratio": 0.0,
        "soft_fresh_weight": 0.0,
        "taylor_cache": False,
        "max_order": 0,
    }

    def prepared(network: nn.Module) -> None:
        for change in changes:
            change(network)

    return OfFlux(source, 20, policy, plain | told, prepared)


def taylor(order: int, interval: int, *changes: Callable) -> OfFlux:
    """Three full steps, then every `interval`-th."""
    policy = partial(Taylor, FORA(computed=(0, 1, *range(2, 20, interval)), steps=20), order)
    return case(policy, *changes, fresh_threshold=interval, taylor_cache=True, max_order=order)


def tokens(cls: type[ToCa], selection: str, *changes: Callable) -> OfFlux:
    """ToCa and DuCa as they are set in their code."""
    policy = partial(cls, "flux", selection=selection, faithful=True)
    settings, source = policy().settings, TOCA_CODE if cls is ToCa else TAYLOR_CODE
    return case(
        policy, *changes, *([dealt] if selection == "random" else []), source=source, cache_type=KINDS[selection],
        fresh_ratio=settings.ratio, fresh_threshold=settings.interval, soft_fresh_weight=settings.staleness,
    )  # fmt: skip


CASES = {
    "none, 20 steps": case(Full, fresh_threshold=1),
    "FORA N=4": case(partial(FORA, 4, "aligned"), fresh_threshold=4),
    "Taylor 1, N=4": taylor(1, 4),
    "Taylor 1, N=6": taylor(1, 6),
    "Taylor 2, N=6": taylor(2, 6),
    "Taylor 2, N=6, order 2 at once": taylor(2, 6, at_once),
    "ToCa N=4, random": tokens(ToCa, "random"),
    "ToCa N=4, random, double blocks only": tokens(ToCa, "random", double_only),
    "ToCa N=4, large values, double blocks only": tokens(ToCa, "large values", double_only),
    "DuCa N=5, random": tokens(DuCa, "random", aggressive),
    "DuCa N=5, random, double blocks only, last block kept": tokens(DuCa, "random", aggressive, double_only, last_kept),
}
