"""What forecasting is compared with: published methods, each with steps of its own choice or with given ones."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

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
    """Spectrum (arXiv 2603.01623), from its description: ridge regression on Chebyshev polynomials of the step, over all
    computed steps, mixed with the line through the last two.

    The paper keeps the last hidden state; here it is the model's output, as for everything else in the comparison.
    """

    history = 100
    degree: int = 4
    ridge: float = 0.1
    mix: float = 0.5  # share of the regression

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        weights = spectrum_weights([f.step.index for f in past], step.index, step.total, self)
        return sum(w * f.value.float() for w, f in zip(weights, past, strict=True))


def spectrum_weights(nodes: list[int], at: int, total: int, policy: Spectrum) -> list[float]:
    """Weights of the outputs computed at `nodes`, newest first."""

    def basis(steps: list[int]) -> Tensor:
        angle = torch.arccos((2 * torch.tensor(steps, dtype=torch.float64) / total - 1).clamp(-1, 1))
        return torch.cos(angle[:, None] * torch.arange(policy.degree + 1))

    known = basis(nodes)
    normal = known.T @ known + policy.ridge * torch.eye(policy.degree + 1, dtype=torch.float64)
    weights = policy.mix * (basis([at]) @ torch.linalg.solve(normal, known.T))[0]
    line = torch.zeros(len(nodes), dtype=torch.float64)
    slope = (at - nodes[0]) / (nodes[0] - nodes[1]) if len(nodes) > 1 else 0.0
    line[0] += 1 + slope
    line[1:2] -= slope
    return (weights + (1 - policy.mix) * line).tolist()


def growing(total: int, count: int) -> tuple[int, ...]:
    """Spectrum's own schedule with `count` computed steps: some in a row, then windows that grow at a constant rate."""
    warm = min(5, max(2, count // 2))

    def grown(rate: float) -> tuple[int, ...]:
        chosen, window, step = list(range(warm)), 2.0, warm - 1
        while (step := step + max(1, int(window))) < total:
            chosen.append(step)
            window += rate
        return tuple(chosen)

    coarse, fine = ([grown(n / of) for n in range(20 * of)] for of in (20, 100))
    exact = (chosen for chosen in (*coarse, *fine) if len(chosen) == count)
    return next(exact, None) or next((chosen for chosen in coarse if len(chosen) <= count), coarse[-1])


WINDOWS = ((0.15, 0.95), (0.0, 1.0))
"""Where in a run the host's caches may skip: their default, and everywhere."""


@contextmanager
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
    yield getattr(nodes_easycache, f"{node}Node").execute(model, threshold, *window, False).args[0]
