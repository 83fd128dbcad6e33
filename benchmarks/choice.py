"""What serves a sampler best that Forecast declines: the figures behind `priors/auto.py`.

    python tools/dev.py bench choice --model dit --cfg 1.5 --samplers euler_ancestral heun

Error: relative L2 distance of the final latent to that of all evaluations, mean over pictures and its standard error.
"""

from __future__ import annotations

import argparse

import torch

from ..cache_core.policies import CachePolicy, Taylor
from ..cache_core.trace import Trace
from ..priors.auto import paced
from .frontier import Bench, measured, pairs_of


def candidates(goal: float) -> dict[str, CachePolicy]:
    found = {}
    for name, level in (("branches", "branch"), ("whole network", "model")):
        found[f"FORA, {name}"] = paced(goal, level)
        found[f"Taylor 1, {name}"] = Taylor(paced(goal, level), 1)
    return found


def judged(bench: Bench, goals: list[float]) -> list[tuple[str, float, float, float, float]]:
    """(candidate, goal, share computed, error, its standard error) of every candidate at every goal."""
    from ..nodes.attach import attach

    exact, rows = bench.sample(bench.model).latents, []
    for goal in goals:
        for name, policy in candidates(goal).items():
            trace = Trace()
            point = measured(name, bench.sample(attach(bench.model, policy, trace)), exact)
            rows.append((name, goal, trace.runs[-1].computed_fraction, point.error, point.spread))
    return rows


@torch.inference_mode()
def main(argv: list[str]) -> None:
    from judge import SAMPLERS, Drawer, weights

    parser = argparse.ArgumentParser(
        prog="bench choice", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=SAMPLERS, default="dit")
    parser.add_argument("--samplers", nargs="+", default=["euler_ancestral", "heun"])
    parser.add_argument("--goals", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--pairs", type=int, default=12)
    args = parser.parse_args(argv)
    drawer = Drawer(args.model, weights(args.model))
    pairs = pairs_of(drawer, args.pairs, args.pairs, 5000)
    for sampler in args.samplers:
        bench = Bench(drawer.model, args.steps, args.cfg, sampler, SAMPLERS[args.model][1], pairs)
        print(f"{args.model}, {sampler}, {args.steps} steps, cfg {args.cfg:g}, {args.pairs} pictures", flush=True)
        for name, goal, share, error, doubt in judged(bench, args.goals):
            print(
                f"  {goal:4g}x {name:25} {share:5.0%} computed, error {error:.3f} +- {doubt:.3f}",
                flush=True,
            )
