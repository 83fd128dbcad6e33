"""What an attached cache costs that computes everything: python tools/dev.py bench overhead [--rounds N] [--clock cpu].

Small networks of the host's own classes with random weights and at least 256 tokens are sampled in one process, without
a cache and with it in turn, in another order every round. A ratio compares medians of steps of one round, so that what
else the machine does falls on both sides; the table gives the median ratio over rounds and its quartiles. Every picture
is checked to be bit-equal to stock. "stock again" is the noise of the measurement. A run's first step is told apart: it
holds the comparison of the adapter with the host's blocks.

With --planning: what planning takes instead, on the demo DiT with a prior that a short search put plans into.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ..cache_core.policies import FORA, Forecast, Full
from ..priors.plan import forecasts
from ..priors.prior import Prior
from .machine import device

DEMO = Path(__file__).resolve().parent.parent / "demo"
OUT = DEMO / "out" / "overhead.json"
STOCK = "stock"
ALL_COMPUTED = FORA(1)

VARIANTS: dict[str, dict | None] = {
    STOCK: None,
    "stock again": None,
    "attached, nothing kept": {"policy": Full()},
    "kept on the device": {"policy": ALL_COMPUTED},
    "kept in main memory": {"policy": ALL_COMPUTED, "store": "cpu"},
    "kept in 8 bit": {"policy": ALL_COMPUTED, "store": "8 bit"},
    "kept, errors measured": {"policy": ALL_COMPUTED, "measure": "errors"},
}
"""What is attached; None: nothing."""


class Ground(NamedTuple):
    """A model with what one sampling run of it needs. latent: (1, C, H, W)."""

    model: object
    latent: torch.Tensor
    prompts: list[list]
    tokens: int


def now() -> float:
    """Seconds, once the device has done what it was told to."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def randomised(network: torch.nn.Module) -> None:
    """Weights that keep the size of what passes through, drawn where they are; all of them must be on one device."""
    rng = torch.Generator(next(network.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1, generator=rng)
            if weight.ndim == 1 and "norm" in name:
                weight += 1


def built(name: str, dtype: torch.dtype = torch.float32, **settings):
    """A model of the host's, of a size that its loader would not recognise, made on its device and always there."""
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, name)(settings)
    config.set_inference_dtype(dtype, None)
    place = device()
    with torch.inference_mode():
        base = config.get_model({}, "", device=place)
        randomised(base.diffusion_model.to(place))
    return comfy.model_patcher.CoreModelPatcher(base, load_device=place, offload_device=place)


def texts(words: int, width: int, pooled: int = 64) -> list[list]:
    """A positive and a negative prompt."""
    rng = torch.Generator().manual_seed(1)
    pairs = [(torch.randn(1, words, width, generator=rng), torch.randn(1, pooled, generator=rng)) for _ in range(2)]
    return [[[context, {"pooled_output": y}]] for context, y in pairs]


def dit() -> Ground:
    from ..models import host
    from ..models.dit import DiT, DiTConfig
    from ..nodes.dit import conditioning

    config = DiTConfig(256, 6, 4, 2, 4, 10, learn_sigma=False, grid_size=16)
    with torch.inference_mode():
        network = DiT(config)
        randomised(network)
        model = host.from_weights(config, network.state_dict())
    return Ground(model, torch.zeros(1, 4, 32, 32), [conditioning(torch.tensor([n])) for n in (1, -1)], 256)


def flux() -> Ground:
    model = built(
        "Flux", image_model="flux", in_channels=16, out_channels=16, vec_in_dim=64, context_in_dim=64, hidden_size=256,
        mlp_ratio=4.0, num_heads=4, depth=2, depth_single_blocks=4, axes_dim=[16, 24, 24], theta=10000, patch_size=2,
        qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 16, 32, 32), texts(32, 64), 256)


def sd3() -> Ground:
    context = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 256}}
    model = built(
        "SD3", in_channels=16, pos_embed_scaling_factor=None, depth=4, input_size=None, adm_in_channels=64, num_patches=1024,
        pos_embed_max_size=32, qk_norm="rms", context_embedder_config=context,
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 16, 32, 32), texts(32, 64), 256)


def pixart() -> Ground:
    model = built(
        "PixArtSigma", image_model="pixart_sigma", hidden_size=256, num_heads=4, depth=6, patch_size=2,
        caption_channels=64, input_size=40, pe_interpolation=1, micro_condition=False,
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 4, 40, 40), texts(32, 64), 400)


NETWORKS: dict[str, Callable[[], Ground]] = {"dit": dit, "flux": flux, "pixart": pixart, "sd3": sd3}


def sample(
    ground: Ground,
    model,
    steps: int,
    clock: Callable[[], float],
    cfg: float = 2.0,
    stepped: Callable[[], object] = lambda: None,
) -> tuple[torch.Tensor, list[float]]:
    """(picture, seconds of every step). stepped: called after every step."""
    import comfy.sample

    marks: list[float] = []

    def callback(*_) -> None:
        marks.append(clock())
        stepped()

    noise = comfy.sample.prepare_noise(ground.latent, 0)
    with torch.inference_mode():
        begin = clock()
        out = comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", *ground.prompts, ground.latent, disable_pbar=True, seed=0,
            callback=callback,
        )  # fmt: skip
    return out, [after - before for before, after in zip([begin, *marks], marks, strict=False)]


def measured(ground: Ground, rounds: int, steps: int, clock: Callable[[], float]) -> dict[str, dict]:
    """Variant -> milliseconds and ratios. Raises RuntimeError when a picture is not bit-equal to stock."""
    from ..nodes.attach import attach

    models = {
        name: ground.model if given is None else attach(ground.model, **given) for name, given in VARIANTS.items()
    }
    stock, _ = sample(ground, ground.model, steps, clock)  # warms everything up
    first: dict[str, list[float]] = {name: [] for name in models}
    later: dict[str, list[float]] = {name: [] for name in models}
    order, rng = list(models), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            out, seconds = sample(ground, models[name], steps, clock)
            if not torch.equal(out, stock):
                raise RuntimeError(f"{name}: the picture is not bit-equal to the one without a cache")
            first[name].append(seconds[0] * 1e3)
            later[name].append(statistics.median(seconds[1:]) * 1e3)
    return {name: summary(first, later, name) for name in models}


def summary(first: dict[str, list[float]], later: dict[str, list[float]], name: str) -> dict:
    ratios = [own / stock for own, stock in zip(later[name], later[STOCK], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "step_ms": statistics.median(later[name]),
        "first_step_more_ms": statistics.median(a - b for a, b in zip(first[name], first[STOCK], strict=True)),
        "ratio": middle,
        "quartiles": [low, high],
    }


def rows(name: str, ground: Ground, result: dict[str, dict]) -> list[str]:
    return [
        f"| {name}, {ground.tokens} tokens | {variant} | {of['step_ms']:.2f} | {of['ratio']:.3f} "
        f"| {of['quartiles'][0]:.3f} to {of['quartiles'][1]:.3f} | {of['first_step_more_ms']:+.1f} |"
        for variant, of in result.items()
    ]


@torch.inference_mode()
def planning(clock: Callable[[], float], steps: int = 20, times: int = 5) -> dict[str, list[float]]:
    """What is planned, and the seconds that it took each time."""
    from ..models.host import load
    from ..nodes.calibrate import PriorCacheCalibrate
    from ..nodes.dit import conditioning
    from ..nodes.forecast import PriorCachePlan, PriorCacheSearch
    from ..nodes.prior import register_folder
    from ..nodes.sampling import Sampling

    register_folder()
    model = load(str(DEMO / "shapes-dit.safetensors"))
    config = model.model.diffusion_model.config
    side = config.grid_size * config.patch_size
    latent = torch.zeros(1, config.in_channels, side, side)
    prompts = [conditioning(torch.tensor([n])) for n in (1, -1)]
    about = (steps, 1.5, "ddim", "ddim_uniform", 1.0)
    images = {"samples": latent}
    measured = PriorCacheCalibrate.execute(model, *prompts, images, 0, 1, *about, 2, False).args[0]
    searched = PriorCacheSearch.execute(measured, model, *prompts, images, 1, 2.0, "2, 2.5, 3.3, 4").args[0]
    schedule, other = (Sampling(*prompts, latent, n, *about[1:]).schedule(model) for n in (steps, 50))
    counts, gram = [plan.evaluations for plan in searched.plans], searched.tables["gram/positive"]
    with tempfile.TemporaryDirectory() as folder:
        file = searched.save(Path(folder) / "prior.safetensors")
        plan = searched.plans[0].restored()
        work = {
            "Load Prior": lambda: Prior.load(file),
            "Plan Policy": lambda: PriorCachePlan.execute(searched, "speed-up", 2.0, model),
            "Forecast, as a sampling begins": lambda: Forecast(2.0).prepared(schedule),
            "a plan, as a sampling of other steps begins": lambda: plan.prepared(other),
            "Search Plans, besides sampling": lambda: [forecasts(schedule, gram)(count, None) for count in counts],
        }
        return {name: [timed(do, clock) for _ in range(times)] for name, do in work.items()}


def timed(do: Callable[[], object], clock: Callable[[], float]) -> float:
    begin = clock()
    do()
    return clock() - begin


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15, help="of every variant in another order, 2 or more")
    parser.add_argument("--steps", type=int, default=8, help="of every run, 2 or more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that is not yours alone"
    )
    parser.add_argument("--planning", action="store_true", help="what planning takes, instead")
    args = parser.parse_args(argv)
    if args.rounds < 2 or args.steps < 2:
        parser.error("--rounds and --steps must be 2 or more")
    torch.set_num_threads(args.threads)
    clock = now if args.clock == "wall" else time.process_time
    if args.planning:
        print("| | first, ms | median, ms |\n|---|---|---|")
        for name, seconds in planning(clock).items():
            print(f"| {name} | {seconds[0] * 1e3:.2f} | {statistics.median(seconds) * 1e3:.2f} |", flush=True)
        return

    results = {}
    print(
        "| network | variant | ms a step | to stock | quartiles | ms more in the first step |\n|---|---|---|---|---|---|"
    )
    for name in args.networks:
        ground = NETWORKS[name]()
        results[name] = {"tokens": ground.tokens, "variants": measured(ground, args.rounds, args.steps, clock)}
        print("\n".join(rows(name, ground, results[name]["variants"])), flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    settings = vars(args) | {"torch": torch.__version__}
    OUT.write_text(json.dumps({"settings": settings, "networks": results}, indent=2) + "\n")
    print(f"\nEvery picture was bit-equal to stock. Written to {OUT.relative_to(OUT.parents[2])}.")
