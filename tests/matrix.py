"""What the scenario tests must show: policies x architectures x samplers, and the scenarios of every level.

A test marked `scenario(name, shown)` that passes fills the cell (name, its architecture, its policy) with `shown`, or
with what it recorded by `record_property(name, ...)`. `tools/scenarios.py` makes the tables of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from priorcache.cache_core.policies import EOC, FORA, GOC, L2C, CachePolicy, DuCa, Forecast, Taylor, ToCa
from priorcache.cache_core.sites import Action, Feature, Site, Step, Streams

ARCHITECTURES = {"dit": "DiT", "flux": "Flux", "sd3": "SD3", "pixart": "PixArt"}
"""The fixture of each, and its name in the tables."""

BASE = FORA(2, "aligned")

LEVELS = {
    "FORA": BASE,
    "FORA, all blocks": FORA(2, "aligned", level="stack"),
    "FORA, whole network": FORA(2, "aligned", level="model"),
}
"""One policy for everything that can be skipped at once: what a scenario changes concerns the level, not the paper."""


class Ground(NamedTuple):
    """What a policy may be made for: a network's branches, a number of steps, and what a run in full has shown."""

    sites: tuple[Site, ...]
    steps: int
    trends: Trends


class Trends:
    """Watches a run in full; then the mean change of every branch since the evaluation before, as EOC asks for it."""

    branches, history, latent = True, 0, ()

    def __init__(self):
        self.means: dict = {}  # (evaluation, site) -> (N, C)
        self.levels: dict[int, float] = {}

    def branch(self, step: Step, site: Site, streams: Streams, out, past: list[Feature]) -> None:
        for lane, own in zip(streams, out.chunk(len(streams)), strict=True):
            if lane.cond == 0:
                self.means[step.index, site.name] = own.mean(0)
                self.levels[step.index] = step.sigma

    def model(self, step: Step, streams: Streams, derivative) -> None:
        self.steps = step.total

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(self.levels.values())

    def knows(self, site: str) -> bool:
        return (1, site) in self.means

    def at(self, step: int, site: str):
        now, before = self.means.get((step, site)), self.means.get((step - 1, site))
        return None if now is None or before is None else now - before


def routed(ground: Ground) -> L2C:
    """Every second step in full; in between the branches at odd places are reused."""
    odd = tuple(float(not i % 2) for i in range(len(ground.sites)))
    full = (float("nan"),) * len(odd)
    rows = tuple(odd if step % 2 else full for step in range(ground.steps))
    return L2C(rows, tuple(site.name for site in ground.sites), ground.steps)


POLICIES: dict[str, Callable[[Ground], CachePolicy]] = {
    **{name: lambda _, policy=policy: policy for name, policy in LEVELS.items()},
    "GOC": lambda _: GOC(BASE, eta=0.5),
    "EOC": lambda ground: EOC(BASE, trends=ground.trends),
    "L2C": routed,
    "Taylor": lambda _: Taylor(BASE),
    "ToCa": lambda _: ToCa("dit", ratio=0.3),
    "DuCa": lambda _: DuCa("dit", ratio=0.3),
    "Forecast": lambda _: Forecast(),
}
"""Every policy that has a file, once per thing that it can be asked about."""

STEPS = {"Forecast": 10}
"""Sampler steps where a policy declines the usual 5."""


@dataclass(frozen=True)
class Computing(CachePolicy):
    """Keeps what another policy keeps, and computes everything."""

    base: CachePolicy

    @property
    def history(self) -> int:
        return self.base.history

    @property
    def stack(self) -> bool:
        return self.base.stack

    def decide(self, step: Step, site: Site) -> Action:
        return Action.COMPUTE

    def describe(self) -> str:
        return f"all computed, as {self.base.describe()}"


def everything(policy: CachePolicy) -> CachePolicy:
    """A policy of the same level, for as many past outputs, that reuses nothing."""
    return Computing(policy, level=policy.level)


KINDS = ("euler", "heun", "euler_ancestral", "dpmpp_2m", "dpmpp_sde")
"""One sampler of each kind: one call per step, two, noise added, several steps remembered, several of these at once."""

ALL = tuple(ARCHITECTURES)
TEXT = ("flux", "sd3", "pixart")


class Scenario(NamedTuple):
    """A way of sampling: where it is shown, and why not elsewhere."""

    architectures: tuple[str, ...] = ALL
    reason: str = ""
    levels: tuple[str, ...] = tuple(LEVELS)


ONE_LENGTH = "class numbers have one length"
AS_FLUX = "the host does this outside of the network, alike for all"

SCENARIOS = {
    "bypassed after use": Scenario(),
    "node run again": Scenario(),
    "interrupted in mid-run": Scenario(),
    "exception in mid-run": Scenario(),
    "two samplers, one model": Scenario(),
    "another size": Scenario(),
    "another aspect": Scenario(),
    "another batch size": Scenario(),
    "another number of steps": Scenario(),
    "cfg 1 after cfg 2": Scenario(),
    "another sampler": Scenario(),
    "another prompt": Scenario(),
    "image to image": Scenario(),
    "two KSampler (Advanced)": Scenario(),
    "200 prompts in a row": Scenario(("dit",), "the memory is the engine's, not the network's"),
    "conds in one call or in two": Scenario(),
    "conds of different lengths": Scenario(TEXT, ONE_LENGTH),
    "no guidance, then guidance": Scenario(),
    "several positives": Scenario(),
    "areas": Scenario(),
    "masks": Scenario(),
    "timestep ranges": Scenario(),
    "all of these at once": Scenario(),
    "perpendicular negative": Scenario(),
    "skip-layer guidance": Scenario(("sd3",), "the host's nodes skip layers of SD3's kind only"),
    "LoRA before and after": Scenario(("dit", "flux"), AS_FLUX),
    "ControlNet": Scenario(("flux",), "residuals enter where the network says, and are tested there"),
    "reference latents": Scenario(("flux",), "edit models of the Flux family"),
    "context windows": Scenario(("flux",), AS_FLUX),
    "float16 weights": Scenario(("flux",), AS_FLUX),
    "bfloat16 weights": Scenario(("flux",), AS_FLUX),
    "float8 weights": Scenario(("flux",), AS_FLUX),
    "low-VRAM mode": Scenario(("dit", "flux"), AS_FLUX),
    "torch.compile before and after": Scenario(("dit", "flux"), "one way into every network's blocks"),
    "memory told beforehand": Scenario(),
    "memory in 8 bits": Scenario(),
    "EasyCache, LazyCache": Scenario(("dit",), "refused before the network is looked at"),
}
EVERY_POLICY = "sampled"
"""The scenario that every policy stands in on every architecture."""


def levels(*names: str):
    """Parametrises a test by `policy`: one of each level, or those named."""
    chosen = names or tuple(LEVELS)
    return pytest.mark.parametrize("policy", [LEVELS[n] for n in chosen], ids=chosen)


def sampled(architecture: str, policy: str, samplers: Iterable[str]) -> tuple[str, ...]:
    """What a policy is tested with: all samplers on the host's two kinds of noise schedule, else one of each kind."""
    everywhere = architecture == "dit" or (architecture == "flux" and policy in LEVELS)
    return tuple(samplers) if everywhere else KINDS


def declared(samplers: Iterable[str]) -> set[tuple[str, str, str]]:
    """Every cell (scenario, architecture, policy) that a test must stand behind."""
    cells = {(EVERY_POLICY, a, p) for a in ARCHITECTURES for p in POLICIES}
    cells |= {(f"sampler {s}", a, p) for a in ARCHITECTURES for p in POLICIES for s in sampled(a, p, samplers)}
    return cells | {(n, a, p) for n, case in SCENARIOS.items() for a in case.architectures for p in case.levels}
