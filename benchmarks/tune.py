"""The papers' constants against those that Tune Policy finds on a small DiT: python tools/dev.py bench tune [--rows GOC].

Each policy is tuned on a few pictures, the first labels of one seed; both are then judged on others, the labels that
follow of another seed. Error: relative L2 distance of the final latent to that of all steps, mean over pictures; the gain
is the mean over pictures of how much of it went, with its standard error. Computed: of the branches' operations.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache_core.policies import EOC, FORA, GOC, CachePolicy, DuCa, Full
from ..cache_core.policies.fora import PRESETS
from ..cache_core.sites import Schedule
from ..plots.metrics import relative_l2
from ..priors.search import Outcome, Search
from ..priors.trend import Trend
from ..priors.tune import Tuning, told, tuned
from .sampled import SAMPLER, Aids, Bench, say

ROOT = Path(__file__).resolve().parent.parent
MODEL, FOLDER = ROOT / "demo" / "shapes-dit.safetensors", ROOT / "demo" / "out" / "tune"
SEED, HELD_OUT = 400_000, 500_000


class Row(NamedTuple):
    """A policy that was tuned: errors (B,) on pictures that it was not tuned on, before and after."""

    name: str
    tuning: Tuning
    before: Tensor
    after: Tensor

    @property
    def gain(self) -> tuple[float, float]:
        """Mean over pictures of the share of the error that went, and its standard error."""
        gone = 1 - self.after / self.before
        return gone.mean().item(), gone.std().item() / math.sqrt(len(gone))

    def __str__(self) -> str:
        (was, now), (gain, doubt), costs = self.tuning.errors, self.gain, self.tuning.costs
        return (
            f"| {self.name} | {costs[0]:.1%} / {costs[1]:.1%} | {was:.4f} / {now:.4f} | {self.before.mean():.4f} / "
            f"{self.after.mean():.4f} | {gain:.0%} +- {doubt:.0%} |"
        )


HALF = FORA(**PRESETS["50 %"])
PAPERS: dict[str, Callable[[Aids], CachePolicy]] = {
    "GOC 1.2 on FORA 50 %": lambda aids: GOC(HALF, 1.2),
    "EOC .01 on FORA 50 %": lambda aids: EOC(HALF, Trend(aids.prior)),
    "DuCa": lambda aids: DuCa("dit"),
    "FORA 50 %": lambda aids: HALF,
}
"""What is tuned, with the constants of its authors."""


class Pictures(NamedTuple):
    """What samples some pictures under any policy, and their latents in full."""

    sample: Callable[..., Outcome]  # of a policy, and of how many of the pictures
    exact: Tensor
    schedule: Schedule

    def errors(self, policy: CachePolicy) -> Tensor:
        return relative_l2(self.sample(policy).latents, self.exact)


def pictures(bench: Bench, labels: Tensor, seed: int) -> Pictures:
    from ..nodes.dit import conditioning
    from ..nodes.sampling import Sampling
    from ..nodes.searching import Sampler

    conds = conditioning(labels), conditioning(torch.full_like(labels, -1))
    asked, _ = bench.schedule(bench.steps)
    sample = Sampler(Sampling(*conds, bench.latent(len(labels)), asked, bench.cfg, *SAMPLER), bench.model, seed)
    return Pictures(sample, sample(Full()).latents, sample.schedule)


def row(name: str, policy: CachePolicy, judged: Pictures, held_out: Pictures, samplings: float) -> Row:
    tuning = tuned(Search(*judged), policy, samplings)
    return Row(name, tuning, held_out.errors(policy), held_out.errors(tuning.after))


@torch.inference_mode()
def main(argv: list[str]) -> None:
    from ..models import host

    parser = argparse.ArgumentParser(
        prog="bench tune", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", default="", help="only policies whose name has this in it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--pictures", type=int, default=4, help="to tune on")
    parser.add_argument("--held-out", type=int, default=16, help="to report on")
    parser.add_argument("--samplings", type=float, default=24.0, help="that one search may cost")
    parser.add_argument("--calibration", type=int, default=24, help="pictures for the prior of EOC")
    args = parser.parse_args(argv)
    bench = Bench(host.load(str(MODEL)), args.steps, args.cfg, 32)
    folder = FOLDER / f"{args.steps}-{args.cfg:g}"
    folder.mkdir(parents=True, exist_ok=True)
    aids = Aids(bench, folder, args.calibration, 24)
    judged = pictures(bench, bench.labels(0, args.pictures), SEED)
    held_out, rows = pictures(bench, bench.labels(args.pictures, args.held_out), HELD_OUT), []
    for name, made in PAPERS.items():
        if args.rows in name:
            rows.append(row(name, made(aids), judged, held_out, args.samplings))
            say(f"{rows[-1]}\n{told(rows[-1].tuning)}")
    print("| policy | computed | error, tuned on | error, held out | gain, held out |\n|---|---|---|---|---|")
    print(*rows, sep="\n")
