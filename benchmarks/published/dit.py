"""The DiT of most of the papers: 28 blocks, as many as their code counts on, of width 32, sampled with DDIM."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import zlib
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ...cache_core.policies import EOC, FORA, GOC, L2C, CachePolicy, DuCa, Full, Taylor, ToCa
from ...cache_core.policies.fora import PRESETS
from ...cache_core.policies.goc import PUBLISHED_INFLECTIONS, PUBLISHED_STEPS
from ...models.dit import DiT, DiTConfig
from ...priors.published import dit_sigmas
from .source import Case, Source, dealt, normal, sampled, seeded, weight, wrapped

MASKS = Path(__file__).resolve().parents[2] / "tests" / "priors" / "l2c_router_masks.json"
CONFIG = DiTConfig(32, 28, 2, 2, 3, 12, learn_sigma=True, grid_size=8)
"""Three channels, as their guidance is of three."""
BRANCHES = ("attn", "mlp")
SITES = tuple(f"blocks.{block}.{branch}" for block in range(CONFIG.depth) for branch in BRANCHES)
LABELS, CFG = (3, 8), 1.5


@cache
def weights() -> dict[str, Tensor]:
    rng = seeded(0)
    return {name: weight(rng, like.shape) for name, like in DiT(CONFIG).state_dict().items()}


@cache
def noise() -> Tensor:
    """(B, C, H, W)"""
    side = CONFIG.grid_size * CONFIG.patch_size
    return normal(seeded(1), len(LABELS), CONFIG.in_channels, side, side)


def made(models: ModuleType) -> torch.nn.Module:
    """Their network with these weights."""
    models.device = "cpu"  # a name that one of them uses and does not define
    network = models.DiT(
        CONFIG.grid_size * CONFIG.patch_size, CONFIG.patch_size, CONFIG.in_channels, CONFIG.hidden_size, CONFIG.depth,
        CONFIG.num_heads, num_classes=CONFIG.num_classes,
    )  # fmt: skip
    network.load_state_dict(weights())
    return network.eval()


@dataclass(frozen=True)
class OfDiT(Case):
    """changes: of their network, which their sampler calls by `forward_with_cfg`, and of that sampler."""

    def theirs(self, code: Path) -> Tensor:
        with self.source.opened(code) as models, torch.no_grad():
            network, diffusion = made(models), importlib.import_module("diffusion").create_diffusion(str(self.steps))
            self.changed(network, diffusion)
            labels = torch.tensor([*LABELS, *[CONFIG.num_classes] * len(LABELS)])
            both = noise().repeat(2, 1, 1, 1)
            out = diffusion.ddim_sample_loop(
                network.forward_with_cfg, both.shape, both, clip_denoised=False, device="cpu",
                model_kwargs={"y": labels, "cfg_scale": CFG, **self.options},
            )  # fmt: skip
        return out[: len(LABELS)]

    def drawn(self, policy: CachePolicy) -> Tensor:
        from ...models import host
        from ...nodes.dit import conditioning

        model = host.from_weights(CONFIG, dict(weights()), torch.float32)
        sigmas = torch.cat((dit_sigmas(self.steps), torch.zeros(1))).float()
        labels = torch.tensor(LABELS)
        prompts = conditioning(labels), conditioning(torch.full_like(labels, -1))
        return sampled(model, policy, noise(), CFG, "ddim", sigmas, *prompts)


def stepped(network, diffusion) -> None:
    """FORA's code knows the step and has a cache only where its sampler draws noise; with DDIM they are told here."""
    network.cache_attn, network.cache_mlp = [], []
    network.num_steps, network.cache_threshold = diffusion.num_timesteps, "3"
    kept = {-1: {block: {} for block in range(CONFIG.depth)}, "save_cache": "boost_infer_static", "cache_subtype": ""}
    steps = iter(reversed(range(diffusion.num_timesteps)))

    def told(forward, x, t, current_step, cache, **kwargs):
        return forward(x, t, next(steps), kept, **kwargs)

    wrapped(network, "forward_with_cfg", told)


def routed(network, diffusion) -> None:
    """L2C and what is built on it read the published router, which holds more than tensors."""
    steps = diffusion.num_timesteps
    file = Path(sys.modules[type(network).__module__].__file__).parent.parent / "ckpt" / f"DDIM{steps}_router.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        network.load_ranking(str(file), steps, diffusion.timestep_map, 0.1)
    network.reset(steps)


def random(network, diffusion) -> None:
    """Tokens are chosen by our random scores."""

    def place(current: dict) -> tuple[int, str]:
        return diffusion.num_timesteps - 1 - current["step"], f"blocks.{current['layer']}.mlp"

    dealt(importlib.import_module("cache_functions.cache_cutfresh"), place)


def knowing(network, diffusion) -> None:
    """EOC reads the mean features of every block and step."""
    blocks = [
        {branch: [[mean] for mean in means(f"blocks.{block}.{branch}", diffusion.num_timesteps)] for branch in BRANCHES}
        for block in range(CONFIG.depth)
    ]

    def told(forward, x, t, block_outputs, **kwargs):
        return forward(x, t, block_outputs=blocks, **kwargs)

    wrapped(network, "forward_with_cfg", told)


@cache
def means(site: str, steps: int) -> Tensor:
    """(T, N, C) mean features for EOC, drawn at random and large enough for its theta to be seen."""
    rng = seeded(zlib.crc32(site.encode()))
    return 40 * torch.rand(steps, CONFIG.grid_size**2, CONFIG.hidden_size, generator=rng) - 20


@dataclass(frozen=True)
class Means:
    """Those features as EOC asks for them."""

    steps: int
    latent: tuple[int, ...] = ()  # any

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(dit_sigmas(self.steps).tolist())

    def knows(self, site: str) -> bool:
        return True

    def at(self, step: int, site: str) -> Tensor:
        mean = means(site, self.steps)
        return mean[step] - mean[step - 1]


def router(steps: int) -> L2C:
    """The published router's decisions as a policy."""
    masks = json.loads(MASKS.read_text())[f"dit_xl2_256_ddim{steps}"]["masks"]
    rows = [(math.inf,) * len(SITES) for _ in range(steps)]
    for entry, (attention, mlp) in masks.items():
        gates = tuple(float(bit) for pair in zip(attention, mlp, strict=True) for bit in pair)
        rows[steps - 1 - int(entry)] = gates
    return L2C(tuple(rows), SITES, steps)


FORA_CODE = Source("prathebaselva/FORA", "src")
L2C_CODE = Source("horseee/learning-to-cache", "DiT", "models.dynamic_models")
GOC_CODE = Source("qiujx0520/GOC_ICCV2025", "DiT", "models.models")
EOC_CODE = Source("qiujx0520/GOC_ICCV2025", "DiT", "models/__pycache__/models.cpython-310.pyc")
TOCA_CODE = Source("Shenyi-Z/ToCa", "DiT-ToCa")
DUCA_CODE = Source("Shenyi-Z/DuCa", "DuCa-DiT")
TAYLOR_CODE = Source("Shenyi-Z/TaylorSeer", "TaylorSeer-DiT")
KINDS = {"random": "random", "small values": "kv-norm", "attention": "attention"}
"""Our selections -> theirs."""


def tokens(cls: type[ToCa], selection: str, interval: int) -> OfDiT:
    """ToCa and DuCa at the ratios of their commands."""
    source, schedule, ratio = (TOCA_CODE, "ToCa-ddim50", 0.07) if cls is ToCa else (DUCA_CODE, "ToCa", 0.05)
    told = {
        "cache_type": KINDS[selection], "fresh_ratio": ratio, "fresh_threshold": interval, "ratio_scheduler": schedule,
        "force_fresh": "global", "soft_fresh_weight": 0.25, "test_FLOPs": False,
    }  # fmt: skip
    policy = partial(cls, "dit", interval=interval, selection=selection, faithful=True)
    return OfDiT(source, 50, policy, told, (random,) if selection == "random" else ())


def taylor(order: int, interval: int) -> OfDiT:
    """Two full steps, then every `interval`-th."""
    base = FORA(computed=(0, *range(1, 50, interval)), steps=50)
    return OfDiT(
        TAYLOR_CODE, 50, partial(Taylor, base, order), {"interval": interval, "max_order": order, "test_FLOPs": False}
    )


UNCACHED = replace(L2C_CODE, network="models.models")
CASES = {
    "none, 20 steps": OfDiT(UNCACHED, 20, Full),
    "none, 50 steps": OfDiT(UNCACHED, 50, Full),
    "FORA N=3": OfDiT(FORA_CODE, 20, partial(FORA, 3), changes=(stepped,)),
    "L2C, the published router of 20 steps": OfDiT(L2C_CODE, 20, partial(router, 20), changes=(routed,)),
    "L2C, the published router of 50 steps": OfDiT(L2C_CODE, 50, partial(router, 50), changes=(routed,)),
    "GOC 1.2 on FORA 25 %": OfDiT(GOC_CODE, 20, lambda: GOC(FORA(**PRESETS["25 %"]), 1.2)),
    "GOC 0.8 on L2C": OfDiT(
        replace(GOC_CODE, network="models.dynamic_models"), 20,
        lambda: GOC(router(20), 0.8, inflections=PUBLISHED_INFLECTIONS, steps=PUBLISHED_STEPS), changes=(routed,),
    ),
    "EOC 0.01 on FORA 25 %": OfDiT(
        EOC_CODE, 20, lambda: EOC(FORA(**PRESETS["25 %"]), Means(20)), changes=(knowing,)
    ),
    "ToCa N=3, random": tokens(ToCa, "random", 3),
    "ToCa N=3, attention": tokens(ToCa, "attention", 3),
    "ToCa N=5, small values": tokens(ToCa, "small values", 5),
    "DuCa N=3, random": tokens(DuCa, "random", 3),
    "DuCa N=3, small values": tokens(DuCa, "small values", 3),
    "DuCa N=5, small values": tokens(DuCa, "small values", 5),
    "Taylor 1, N=4": taylor(1, 4),
    "Taylor 2, N=4": taylor(2, 4),
    "Taylor 2, N=6": taylor(2, 6),
}  # fmt: skip
