"""What caching saves on the clock, at real geometries: python tools/dev.py bench speed [--gpu] [--networks ...].

Networks of the published sizes with random weights in bfloat16 are sampled with every policy and without one, in one
process, in another order every round. Steps are told apart by what was done in them; a step's time is the median over
all rounds, and `wall / FLOPs` is the share of the saved arithmetic that arrives on the clock over a whole run. On a CPU
the larger ones have fewer blocks or a smaller picture, which the table says; `--gpu` takes them as they were published.
Alone, the command measures all of docs/benchmarks.md that belongs to this device (about 80 minutes on two cores).
`--networks`, `--cfg`, `--batch` and `--compile` choose something else; `--minutes` ends early, and says what is left.
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
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..cache_core.adapters import adapter_for, sites_of
from ..cache_core.policies import EOC, FORA, GOC, L2C, CachePolicy, DuCa, Forecast, Full, Taylor, ToCa
from ..cache_core.sites import Action, Site
from ..cache_core.trace import RunTrace, Trace
from ..priors.files import write
from ..priors.statistics import Statistics
from .geometries import NETWORKS
from .machine import device, device_name, versions
from .overhead import Ground, now, sample
from .pages import remarked
from .speed_page import ALL, EVERYTHING, STEPS, STOCK, Case, cases, table

FOLDER = Path(__file__).resolve().parent.parent / "docs"
CALIBRATING = "calibrating"


@dataclass(frozen=True)
class Trended:
    """Trends for EOC where only their time counts: each has memory of its own, as in a prior."""

    sites: tuple[Site, ...]
    shapes: dict[str, tuple[int, int]]  # of each branch: tokens, width
    sigmas: tuple[float, ...]
    steps: int = STEPS
    latent: tuple[int, ...] = ()  # any
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
        "ToCa": ToCa("dit"),
        "DuCa": DuCa("dit"),
        "Forecast": Forecast(2.0),
    }


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


class Measured(NamedTuple):
    rounds: int
    policies: dict[str, dict]


def measured(ground: Ground, case: Case, rounds: int, seconds: float = 0) -> Measured:
    """What every policy costs and saves, in so many rounds, or more while they took less than so many seconds.

    Where it is compiled, the host's node does that before the cache is attached.
    """
    import comfy.samplers
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    from ..nodes.attach import attach

    ground = ground._replace(latent=ground.latent.repeat(case.batch, *[1] * (ground.latent.ndim - 1)))
    cfg, model, (context, _) = case.cfg, ground.model, ground.prompts[0][0]
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
        return {n: m for n, m in found.items() if n == STOCK or any(fnmatch(n, pattern) for pattern in case.policies)}

    models = attached_to(model)
    flops = {name: counted(ground, attached, cfg) for name, attached in models.items()}  # and warms up
    if case.compiled:
        torch.compiler.reset()  # eight graphs of one function are kept, and no more are made
        models = attached_to(TorchCompileModel.execute(model, "inductor").args[0])
        for attached in models.values():
            sample(ground, attached, STEPS, now, cfg)  # compiles
    times: dict[str, list[list[float]]] = {name: [] for name in models}
    accelerated = model.load_device.type == "cuda"
    single = {name: [] for name in models} if accelerated else times  # step by step
    peaks, pictures = dict.fromkeys(models, 0), {}
    order, rng, done, begin = list(models), random.Random(0), 0, time.perf_counter()
    while done < rounds or time.perf_counter() - begin < seconds:
        rng.shuffle(order)
        for name in order:
            if accelerated:
                torch.cuda.reset_peak_memory_stats(model.load_device)
            pictures[name], took = sample(ground, models[name], STEPS, Ends(), cfg)
            times[name].append(took)
            if accelerated:
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(model.load_device))
                if done == 0:
                    single[name].append(sample(ground, models[name], STEPS, now, cfg)[1])
        done += 1
    whole = {name: [sum(run[1:]) for run in runs] for name, runs in times.items()}  # the first step warms up
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
    return Measured(done, found)


def freed() -> None:
    """Give back the memory of models that nobody holds any more, before the next one is made."""
    import comfy.model_management

    gc.collect()
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench speed", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--cfg", nargs="+", type=float, help="1: one cond, above: two")
    parser.add_argument("--batch", type=int, help="pictures at once")
    parser.add_argument("--compile", action="store_true", help="through the host's torch.compile node")
    parser.add_argument("--rounds", type=int, default=2, help="at least")
    parser.add_argument("--seconds", type=float, default=15, help="that rounds of one table take, at least")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no table is begun")
    parser.add_argument("--policies", nargs="+", help="names or patterns such as 'FORA*'; other rows stay as they are")
    parser.add_argument(
        "--remark", default="", help="what else is to be known of this measurement, such as what ran beside it"
    )
    args = parser.parse_args(argv)
    full, begin = device().type != "cpu", time.perf_counter()
    file, page = FOLDER / "benchmarks.json", FOLDER / "benchmarks.md"
    results = json.loads(file.read_text()) if file.exists() else {}
    mine = results.setdefault(device_name(), {"networks": {}})
    mine["about"] = made = f"{platform.machine()}, {versions()}, Python {platform.python_version()}."
    ground, of = None, None
    for number, case in enumerate(asked := chosen(args, full)):
        if time.perf_counter() - begin > 60 * args.minutes:
            left = "; ".join(case.title() for case in asked[number:])
            return print(f"--minutes {args.minutes:g} are over; not measured: {left}", flush=True)
        make, smaller = NETWORKS[case.network]
        if of != case.network:
            ground = None  # nobody holds the last one while the next is made
            freed()
            ground, of = make(full), case.network
        title = case.title(ground.tokens)
        rounds, found = measured(ground, case, args.rounds, args.seconds)
        known = mine["networks"].get(title, {}).get("policies", {}) if args.policies else {}
        mine["networks"][title] = {
            "cfg": case.cfg, "rounds": rounds, "size": "as published" if full else smaller, "remark": args.remark,
            "made": made, "policies": known | found,
        }  # fmt: skip
        write(file, json.dumps(results, indent=1) + "\n")
        write(page, remarked(page, table(results).rstrip("\n")))
        print(f"{title}: {rounds} rounds, written to docs/benchmarks.md", flush=True)


def chosen(args: argparse.Namespace, accelerated: bool) -> list[Case]:
    """All that belongs to the device, or whatever the options say."""
    if not (args.networks or args.cfg or args.batch or args.compile):
        return [case._replace(policies=tuple(args.policies or case.policies)) for case in cases(accelerated)]
    return [
        Case(network, cfg, args.batch or 1, args.compile, tuple(args.policies or ALL))
        for network in args.networks or NETWORKS
        for cfg in args.cfg or (4.0, 1.0)
    ]
