"""What caching saves on the clock, at real geometries: python tools/dev.py bench speed [--gpu] [--networks ...].

Networks of the published sizes with random weights in bfloat16 are sampled with every policy and without one, in one
process, in another order every round. Steps are told apart by what was done in them; a step's time is the median over
all rounds, and `wall / FLOPs` is the share of the saved arithmetic that arrives on the clock over a whole run. On a CPU
the larger ones have fewer blocks or a smaller picture, which the table says; `--gpu` takes them as they were published.
`--compile` puts every one of these behind the host's torch.compile node, with and without a cache alike.
Written to docs/benchmarks.json and docs/benchmarks.md, where what was measured on another device stays.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..cache_core.adapters import adapter_for, sites_of
from ..cache_core.policies import EOC, FORA, GOC, L2C, CachePolicy, DuCa, Forecast, Full, Taylor, ToCa
from ..cache_core.sites import Action, Site
from ..cache_core.trace import RunTrace, Trace, human_bytes
from ..priors.files import write
from ..priors.statistics import Statistics
from .machine import device, device_name, versions
from .overhead import Ground, built, now, randomised, sample, texts
from .pages import remarked

FOLDER = Path(__file__).resolve().parent.parent / "docs"
STOCK = "none"
EVERYTHING = "attached, all computed"
CALIBRATING = "calibrating"
STEPS = 10


@dataclass(frozen=True)
class Trended:
    """Trends for EOC where only their time counts: each has memory of its own, as in a prior."""

    sites: tuple[Site, ...]
    shapes: dict[str, tuple[int, int]]  # of each branch: tokens, width
    sigmas: tuple[float, ...]
    steps: int = STEPS
    made: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def knows(self, site: str) -> bool:
        return site in self.shapes

    def at(self, step: int, site: str) -> Tensor:
        if (step, site) not in self.made:
            self.made[step, site] = torch.full(self.shapes[site], 0.1, dtype=torch.float16)
        return self.made[step, site]


def policies(model, trends: Trended) -> dict[str, CachePolicy | None]:
    """By name; every second step is reused wherever a policy leaves the choice."""
    names = tuple(site.name for site in trends.sites)
    half = tuple(float(i % 2) for i in range(len(names)))  # every other branch
    router = tuple((1.0,) * len(names) if step % 2 == 0 else half for step in range(STEPS))
    base = FORA(2)
    return {
        STOCK: None,
        EVERYTHING: Full(),
        "FORA": base,
        "FORA, all blocks": FORA(2, level="stack"),
        "FORA, whole network": FORA(2, level="model"),
        "L2C, half of the branches": L2C(router, names, STEPS),
        "GOC": GOC(base),
        "EOC": EOC(base, trends),
        "Taylor": Taylor(base),
        "ToCa": ToCa(),
        "DuCa": DuCa(),
        "Forecast": Forecast(2.0),
    }


def dit(size: int) -> Callable[[bool], Ground]:
    def make(full: bool) -> Ground:
        from ..models import host
        from ..models.dit import DiT, DiTConfig
        from ..nodes.dit import conditioning

        depth = 28 if full or size == 256 else 4
        config = DiTConfig(1152, depth, 16, 2, 4, 1000, learn_sigma=True, grid_size=size // 16)
        with torch.inference_mode():
            network = DiT(config, dtype=torch.bfloat16, device=device())
            randomised(network)
            # where the host is asked, it takes float32 on a CPU and float16 on an accelerator
            model = host.from_weights(config, network.state_dict(), torch.bfloat16 if full else None)
        prompts = [conditioning(torch.tensor([n])) for n in (1, -1)]
        return Ground(model, torch.zeros(1, 4, size // 8, size // 8), prompts, (size // 16) ** 2)

    return make


def pixart(full: bool) -> Ground:
    side, depth = (128, 28) if full else (64, 4)
    model = built(
        "PixArtSigma", torch.bfloat16, image_model="pixart_sigma", hidden_size=1152, num_heads=16, depth=depth, patch_size=2,
        caption_channels=4096, input_size=128, pe_interpolation=2, micro_condition=False, model_max_length=300,
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 4, side, side), texts(300, 4096), (side // 2) ** 2)


def flux(full: bool) -> Ground:
    side, (double, single), text = (128, (19, 38), 512) if full else (32, (1, 2), 256)
    model = built(
        "Flux", torch.bfloat16, image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096,
        hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=double, depth_single_blocks=single, axes_dim=[16, 56, 56],
        theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 16, side, side), texts(text, 4096, 768), (side // 2) ** 2)


def sd3(full: bool) -> Ground:
    side, blocks = (128, 24) if full else (32, 3)
    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}
    model = built(
        "SD3", torch.bfloat16, in_channels=16, pos_embed_scaling_factor=None, depth=24, num_blocks=blocks, input_size=None,
        adm_in_channels=2048, num_patches=384**2, pos_embed_max_size=384, qk_norm="rms", context_embedder_config=context,
        x_block_self_attn_layers=list(range(13)),
    )  # fmt: skip
    return Ground(model, torch.zeros(1, 16, side, side), texts(333, 4096, 2048), (side // 2) ** 2)


NETWORKS: dict[str, tuple[Callable[[bool], Ground], str]] = {
    "DiT-XL/2 256": (dit(256), "as published"),
    "DiT-XL/2 512": (dit(512), "4 of its 28 blocks"),
    "PixArt-Sigma": (pixart, "4 of its 28 blocks, 512 x 512"),
    "Flux.1-dev": (flux, "1 + 2 of its 19 + 38 blocks, 256 x 256, 256 tokens of text"),
    "SD3.5-medium": (sd3, "3 of its 24 blocks, 256 x 256"),
}
"""How a network is made, at full size or for a CPU, and what is smaller there."""


class Ends:
    """A clock of one run: the device may run ahead of the marks between the first step and the last, as it does in use."""

    def __init__(self):
        self.marks = 0

    def __call__(self) -> float:
        self.marks += 1
        return now() if self.marks in (1, 2, STEPS + 1) else time.perf_counter()


def counted(ground: Ground, model, cfg: float) -> list[int]:
    """FLOPs of every step; matrix products and attention."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(q, k, v, *_, out_shape=None, **__) -> int:
        return sdpa_flop_count(q, k, v)

    marks = [0]
    with FlopCounterMode(display=False, custom_mapping={flash: attention}) as counter:
        sample(ground, model, STEPS, now, cfg, lambda: marks.append(counter.get_total_flops()))
    return [after - before for before, after in pairwise(marks)]


def kinds(run: RunTrace | None) -> list[str]:
    """What was done in each step: "full", or the least that was done of a branch in it."""
    done: dict[int, set[Action]] = {}
    for row in run.rows if run else ():
        done.setdefault(row.step, set()).add(row.action)
    return [_kind(done.get(step, set())) for step in range(STEPS)]


def _kind(actions: set[Action]) -> str:
    if actions <= {Action.COMPUTE}:
        return "full"
    if Action.PARTIAL in actions:
        return "some tokens"
    return "some branches" if Action.COMPUTE in actions else "reused"


def step_times(run: RunTrace | None, seconds: list[list[float]]) -> dict[str, float]:
    """Median milliseconds of a step of every kind, over several runs alike; the first step of each warms up."""
    found: dict[str, list[float]] = {}
    for of in seconds:
        for kind, took in list(zip(kinds(run), of, strict=True))[1:]:
            found.setdefault(kind, []).append(took)
    return {kind: 1e3 * statistics.median(times) for kind, times in found.items()}


def measured(
    ground: Ground, cfg: float, rounds: int, compiled: bool = False, chosen: Iterable[str] = ("*",)
) -> dict[str, dict]:
    """Policy -> what it costs and saves. compiled: by the host's node, before the cache is attached. chosen: patterns."""
    import comfy.samplers
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    from ..nodes.attach import attach

    model, (context, _) = ground.model, ground.prompts[0][0]
    network, text = model.model.diffusion_model, context.shape[1] if context.ndim == 3 else 0
    sizes = adapter_for(network).sizes(network, [tuple(ground.latent.shape[1:])], text)
    shapes = {site.name: shape for site, shape in sizes.items()}
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS).tolist()
    trends = Trended(sites_of(network), shapes, tuple(sigmas))
    traces = {name: Trace() for name in (*policies(model, trends), CALIBRATING)}

    def attached_to(base) -> dict:
        """Every policy on this MODEL, and what Calibrate does with it."""
        found = {
            name: base if policy is None else attach(base, policy, traces[name])
            for name, policy in policies(model, trends).items()
        }
        found[CALIBRATING] = attach(base, Full(), traces[CALIBRATING], observers=(Statistics(),))
        return {n: m for n, m in found.items() if n == STOCK or any(fnmatch(n, pattern) for pattern in chosen)}

    models = attached_to(model)
    flops = {name: counted(ground, attached, cfg) for name, attached in models.items()}  # and warms up
    if compiled:
        models = attached_to(TorchCompileModel.execute(model, "inductor").args[0])
        for attached in models.values():
            sample(ground, attached, STEPS, now, cfg)  # compiles
    seconds: dict[str, list[list[float]]] = {name: [] for name in models}
    accelerated = model.load_device.type == "cuda"
    single = {name: [] for name in models} if accelerated else seconds  # step by step
    peaks, pictures = dict.fromkeys(models, 0), {}
    order, rng = list(models), random.Random(0)
    for done in range(rounds):
        print(f"round {done + 1} of {rounds}", flush=True)
        rng.shuffle(order)
        for name in order:
            if accelerated:
                torch.cuda.reset_peak_memory_stats(model.load_device)
            pictures[name], took = sample(ground, models[name], STEPS, Ends(), cfg)
            seconds[name].append(took)
            if accelerated:
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(model.load_device))
                if done == 0:
                    single[name].append(sample(ground, models[name], STEPS, now, cfg)[1])
    whole = {name: [sum(run[1:]) for run in runs] for name, runs in seconds.items()}  # the first step warms up
    found = {}
    for name in models:
        run = traces[name].runs[-1] if traces[name].runs else None
        faster = [stock / own for stock, own in zip(whole[STOCK], whole[name], strict=True)]
        fewer = sum(flops[STOCK][1:]) / sum(flops[name][1:])
        found[name] = {
            "milliseconds": step_times(run, single[name]),
            "faster": statistics.median(faster),
            "spread": [min(faster), max(faster)],
            "fewer_flops": fewer,
            "wall_over_flops": statistics.median(faster) / fewer,
            "bytes": run.peak_bytes if run else 0,
            "expected_bytes": run.expected_bytes if run else 0,
            "peak_device_bytes": peaks[name] or None,
            "equal": torch.equal(pictures[name], pictures[STOCK]),
            "notes": run.notes if run else [],
        }
    return found


def freed() -> None:
    """Give back the memory of models that nobody holds any more, before the next one is made."""
    import comfy.model_management

    gc.collect()
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def rows(batch: int, cfg: float) -> str:
    return f"{batch} picture{'s' * (batch > 1)}, cfg {cfg:g}"


def table(results: dict) -> str:
    """docs/benchmarks.md."""
    text = (
        "# What caching saves on the clock\n\nWritten by `python tools/dev.py bench speed` (on an accelerator with `--gpu`): "
        f"{STEPS} euler steps, random weights in bfloat16, every second step reused wherever a policy leaves the choice. "
        "*faster* and *fewer FLOPs* are those of a whole run without its first step, against the run without a cache "
        "beside it; *wall / FLOPs* is one over the other. Bytes are what was held, and what Apply Cache said before. "
        "*calibrating* is what Calibrate does on top of the sampling that it watches. An accelerator may run ahead from step to "
        "step as it does in use, and *ms a step* is of one further run in which it may not.\n"
    )
    for where, of_device in results.items():
        text += f"\n## {where}\n\n{of_device['about']}\n"
        for name, of in of_device["networks"].items():
            remark = f" {of['remark']}" if of.get("remark") else ""
            remark += f" {of['made']}" if of.get("made", of_device["about"]) != of_device["about"] else ""
            text += f"\n### {name}\n\n{of['size'].capitalize()}; {of['rounds']} rounds.{remark}\n\n"
            text += (
                "| policy | ms a step | faster | from to | fewer FLOPs | wall / FLOPs | held | said before | peak |\n"
            )
            text += "|---|---|---|---|---|---|---|---|---|\n"
            for policy, row in of["policies"].items():
                times = ", ".join(f"{kind} {_ms(ms)}" for kind, ms in row["milliseconds"].items())
                low, high = row["spread"]
                bytes_ = (row["bytes"], row["expected_bytes"] or 0, row["peak_device_bytes"])
                held, said, peak = ("" if n is None else human_bytes(n) for n in bytes_)
                text += (
                    f"| {policy} | {times} | {row['faster']:.2f}x | {low:.2f} to {high:.2f} | {row['fewer_flops']:.2f}x "
                    f"| {row['wall_over_flops']:.2f} | {held} | {said} | {peak} |\n"
                )
            if (everything := of["policies"].get(EVERYTHING, {}).get("equal")) is not None:
                text += f"\nWith everything computed the picture is {'' if everything else 'not '}bit-equal to stock.\n"
    if not any("GPU" in where or "NVIDIA" in where for where in results):
        text += "\n## Accelerator\n\nNot measured yet: `python tools/dev.py bench speed --gpu`.\n"
    return text


def _ms(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench speed", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--cfg", nargs="+", type=float, default=[1.0, 4.0], help="1: one cond, above: two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument(
        "--policies", nargs="+", default=["*"], help="names or patterns such as 'FORA*'; other rows stay as they are"
    )
    parser.add_argument(
        "--remark", default="", help="what else is to be known of this measurement, such as what ran beside it"
    )
    parser.add_argument("--compile", action="store_true", help="through the host's torch.compile node")
    args = parser.parse_args(argv)
    full = device().type != "cpu"
    file, page = FOLDER / "benchmarks.json", FOLDER / "benchmarks.md"
    results = json.loads(file.read_text()) if file.exists() else {}
    mine = results.setdefault(device_name(), {"networks": {}})
    mine["about"] = made = f"{platform.machine()}, {versions()}, Python {platform.python_version()}."
    for network in args.networks:
        make, smaller = NETWORKS[network]
        ground = make(full)
        ground = ground._replace(latent=ground.latent.repeat(args.batch, *[1] * (ground.latent.ndim - 1)))
        for cfg in args.cfg:
            title = f"{network}, {ground.tokens} tokens, {rows(args.batch, cfg)}" + ", compiled" * args.compile
            found = measured(ground, cfg, args.rounds, args.compile, args.policies)
            known = mine["networks"].get(title, {}).get("policies", {}) if args.policies != ["*"] else {}
            mine["networks"][title] = {
                "cfg": cfg, "rounds": args.rounds, "size": "as published" if full else smaller, "remark": args.remark,
                "made": made, "policies": known | found,
            }  # fmt: skip
            write(file, json.dumps(results, indent=1) + "\n")
            write(page, remarked(page, table(results).rstrip("\n")))
            print(f"{title}: written to docs/benchmarks.md", flush=True)
        del ground
        freed()
