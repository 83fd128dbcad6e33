"""What forecasting is compared with: published methods, each with steps of its own choice or with given ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ..cache_core.policies.base import CachePolicy
from ..cache_core.sites import Action, Feature, Site, Step


@dataclass(frozen=True)
class Given(CachePolicy):
    """Compute these steps, reuse the last output of the whole network in between."""

    computed: tuple[int, ...] = (0,)
    level: str = field(default="model", kw_only=True)

    def decide(self, step: Step, site: Site) -> Action:
        return Action.COMPUTE if step.index in self.computed else Action.REUSE

    def describe(self) -> str:
        return f"{type(self).__name__}, {len(self.computed)} computed"


@dataclass(frozen=True)
class Spectrum(Given):
    """Spectrum (arXiv 2603.01623): ridge regression on Chebyshev polynomials of the step, over all computed steps, mixed
    with the line through the last two.

    It keeps the hidden state after the last block, as published. The published code counts to 50, however many steps there
    are; here it is to their number, as its ports to ComfyUI have it, with which it comes closer at fewer.
    """

    history = 100
    degree: int = 4
    ridge: float = 0.1
    mix: float = 0.5  # share of the regression
    level: str = field(default="stack", kw_only=True)

    def share(self, step: Step) -> float:
        """Of the regression, at this step."""
        return self.mix

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        weights = self.weights([f.step.index for f in past], step)
        return sum(w * f.value.float() for w, f in zip(weights, past, strict=True)).to(past[0].value.dtype)

    def weights(self, nodes: list[int], step: Step) -> list[float]:
        """Of the features computed at `nodes`, newest first."""

        def basis(steps: list[int]) -> Tensor:
            angle = torch.arccos((2 * torch.tensor(steps, dtype=torch.float64) / step.total - 1).clamp(-1, 1))
            return torch.cos(angle[:, None] * torch.arange(self.degree + 1))

        known, share = basis(nodes), self.share(step)
        normal = known.T @ known + self.ridge * torch.eye(self.degree + 1, dtype=torch.float64)
        weights = share * (basis([step.index]) @ torch.linalg.solve(normal, known.T))[0]
        line = torch.zeros(len(nodes), dtype=torch.float64)
        slope = (step.index - nodes[0]) / (nodes[0] - nodes[1]) if len(nodes) > 1 else 0.0
        line[0] += 1 + slope
        line[1:2] -= slope
        return (weights + (1 - share) * line).tolist()


@dataclass(frozen=True)
class SpectrumNode(Spectrum):
    """Spectrum as a node for ComfyUI has it (judian17/ComfyUI-Spectrum, by its defaults): the wider the window for the rate
    at which windows grow, the larger the share of the regression.
    """

    rate: float = 0.75
    most: float = 0.8

    def share(self, step: Step) -> float:
        last = max((i for i in self.computed if i < step.index), default=0)
        following = min((i for i in self.computed if i > step.index), default=step.total)
        window = min(following - last, step.total - step.index)
        return min(1.0, (window - 1) / (1 + 20 * self.rate)) * self.most


def grown(total: int, rate: float, warm: int = 5) -> tuple[int, ...]:
    """Spectrum's own schedule: so many steps in a row, then windows that begin with 2 and grow by `rate`."""
    chosen, window, step = list(range(warm)), 2.0, warm - 1
    while (step := step + int(window)) < total:
        chosen.append(step)
        window = round(window + rate, 3)
    return tuple(chosen)


@lru_cache
def growth(total: int, count: int, warm: int = 5) -> tuple[float, int]:
    """The rate and the steps in a row that make Spectrum compute `count` steps, or as few less as there are.

    Of the rates that do, the published .75, else the middle one, or where all are larger the least, with windows that are not
    too long.
    """
    warm = min(warm, max(2, count // 2))
    counts = {n / 100: len(grown(total, n / 100, warm)) for n in range(2001)}
    nearest = max((c for c in counts.values() if c <= count), default=min(counts.values()))
    rates = [rate for rate, c in counts.items() if c == nearest]
    if 0.75 in rates:
        return 0.75, warm
    return rates[0] if rates[0] > 0.75 else rates[len(rates) // 2], warm


def growing(total: int, count: int) -> tuple[int, ...]:
    """Spectrum's own schedule with `count` computed steps."""
    return grown(total, *growth(total, count))


def spectrum_node(total: int, count: int) -> SpectrumNode:
    """With its schedule, which begins with three in a row."""
    rate, warm = growth(total, count, 3)
    return SpectrumNode(grown(total, rate, warm), rate=rate)


WINDOWS = ((0.15, 0.95), (0.0, 1.0))
"""Where in a run the host's caches may skip: their default, and everywhere."""


def host_cache(model, node: str, threshold: float, window: tuple[float, float] = WINDOWS[0]):
    """The model with the host's own EasyCache or LazyCache.

    EasyCache adds to the tensor that it was given, which in 32 bits is the sampler's own; it gets a copy, as it would in
    16 bits. Without that its error is several times larger.
    """
    import comfy.patcher_extension
    from comfy_extras import nodes_easycache

    model = model.clone()
    if node == "EasyCache":
        model.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL,
            "copy",
            lambda executor, x, *args, **kwargs: executor(x.clone(), *args, **kwargs),
        )
    return getattr(nodes_easycache, f"{node}Node").execute(model, threshold, *window, False).args[0]
