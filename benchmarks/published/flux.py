"""A Flux of 19 double and 38 single blocks, as many as their code counts on, of width 24, sampled with Euler's method, 20 steps."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ...cache_core.policies import FORA, CachePolicy, DuCa, Full, Taylor, ToCa
from ..overhead import built
from .source import Case, Source, dealt, normal, sampled, seeded, weight, wrapped

CHANNELS, SIDE, PATCH, WORDS, WIDTH = 4, 16, 2, 32, 16
GUIDANCE = 3.5
SHAPE = {
    "vec_in_dim": WIDTH, "context_in_dim": WIDTH, "hidden_size": 24, "mlp_ratio": 2.0, "num_heads": 2, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [4, 4, 4], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip


def weighed(network: nn.Module) -> None:
    """Gives either network the same weights, of which every tensor depends on its name; the host calls a scale weight."""
    with torch.inference_mode():
        for name, parameter in network.named_parameters():
            name = name.replace("_norm.weight", "_norm.scale")
            drawn = weight(seeded(zlib.crc32(name.encode())), parameter.shape)
            parameter.copy_(drawn + name.endswith(".scale"))


@cache
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noise (B, C, H, W), words (B, L, D), and their summary (B, D), of two pictures."""
    rng, shapes = seeded(1), ((2, CHANNELS, SIDE, SIDE), (2, WORDS, WIDTH), (2, WIDTH))
    return tuple(normal(rng, *shape) for shape in shapes)


def made(models: ModuleType) -> nn.Module:
    """Their network with these weights."""
    features = CHANNELS * PATCH**2
    network = models.Flux(models.FluxParams(in_channels=features, out_channels=features, **SHAPE)).eval()
    weighed(network)
    return network


@dataclass(frozen=True)
class OfFlux(Case):
    """changes: of their network, and of the code that it calls."""

    @property
    def sigmas(self) -> Tensor:
        return torch.linspace(1, 0, self.steps + 1)

    def theirs(self, code: Path) -> Tensor:
        """Picture by picture, by their loop; the settings that are written in their code are those of the case."""
        with self.source.opened(code) as models, torch.no_grad():
            loop = import_module("flux.ideas.cache_denoise")
            network, side, init = made(models), SIDE // PATCH, loop.cache_init
            self.changed(network)

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
        model = built(
            "Flux", image_model="flux", in_channels=CHANNELS, out_channels=CHANNELS, patch_size=PATCH, txt_ids_dims=[], **SHAPE
        )  # fmt: skip
        weighed(model.model.diffusion_model)
        noise, words, summary = inputs()
        prompt = [[words, {"pooled_output": summary, "guidance": GUIDANCE}]]
        out = sampled(model, policy, noise, 1.0, "euler", self.sigmas, prompt, prompt)
        return model.model.process_latent_in(out)


def choosing() -> ModuleType:
    """What chooses the tokens."""
    return import_module("flux.modules.cache_functions.cache_cutfresh")


def random(network: nn.Module) -> None:
    """Tokens are chosen by our random scores."""
    dealt(choosing(), lambda now: (now["step"], f"double_blocks.{now['layer']}.{now['module']}"))


def at_once(network: nn.Module) -> None:
    """Order 2 as soon as three outputs are known, which theirs forbids in the first steps."""

    def approximated(approximate, cache_dic, **given):
        approximate(cache_dic={**cache_dic, "first_enhance": 1}, **given)

    wrapped(import_module("flux.modules.layers"), "derivative_approximation", approximated)


def double_only(network: nn.Module) -> None:
    """No token of a single-stream block is computed anew."""

    def ratio(scheduled, cache, current):
        return 0.0 if current["stream"] == "single_stream" else scheduled(cache, current)

    wrapped(choosing(), "fresh_ratio_scheduler", ratio)


def aggressive(network: nn.Module) -> None:
    """Every other step skips all blocks, as a comment of theirs has it."""

    def decided(decide, cache_dic, current):
        decide(cache_dic, current)
        if current["type"] == "ToCa" and cache_dic["cache_counter"] % 2:
            current["type"] = "aggressive"

    wrapped(import_module("flux.model"), "cal_type", decided)


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
        "cache_type": "random", "fresh_ratio": 0.0, "soft_fresh_weight": 0.0, "taylor_cache": False, "max_order": 0,
    }  # fmt: skip
    return OfFlux(source, 20, policy, plain | told, changes)


def taylor(order: int, interval: int, *changes: Callable) -> OfFlux:
    """Three full steps, then every `interval`-th."""
    policy = partial(Taylor, FORA(computed=(0, 1, *range(2, 20, interval)), steps=20), order)
    return case(policy, *changes, fresh_threshold=interval, taylor_cache=True, max_order=order)


def tokens(cls: type[ToCa], selection: str, *changes: Callable) -> OfFlux:
    """ToCa and DuCa as they are set in their code."""
    policy = partial(cls, "flux", selection=selection, faithful=True)
    settings, source = policy().settings, TOCA_CODE if cls is ToCa else TAYLOR_CODE
    return case(
        policy, *changes, *([random] if selection == "random" else []), source=source, cache_type=KINDS[selection],
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
