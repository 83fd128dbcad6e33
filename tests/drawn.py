"""Runs and priors made up for the tests of figures, and what every picture must be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.colors import to_rgb
from priorcache.cache_core.sites import Action, Site, Step
from priorcache.cache_core.trace import Moment, Row, RunTrace
from priorcache.plots.style import pixels
from priorcache.priors.prior import Prior, Subject

SITES = [Site(f"blocks.{i}.{branch}", i, 3) for i in range(3) for branch in ("attn", "mlp")]
NAN = float("nan")


def every_second(step: int, site: Site) -> Action:
    return Action.REUSE if step % 2 else Action.COMPUTE


def compute(step: int, site: Site) -> Action:
    return Action.COMPUTE


def trace(
    evaluations: int = 6,
    decide: Callable[[int, Site], Action] = every_second,
    error: Callable[[int, Site], float | None] = lambda step, site: 0.01 * (step + site.block + 1),
    sites: list[Site] = SITES,
    complete: bool = True,
    changed: str = "",
    measure: str = "errors",
    policy: str = "FORA N=2 (published)",
    skipped: float = 0.2,
) -> RunTrace:
    """A finished run: `skipped` seconds for an evaluation with work skipped, 0.4 for a full one, 3 MiB of cache."""
    run = RunTrace(policy, evaluations, about="euler, 1 x 4 x 8 x 8, cpu", complete=complete, measure=measure)
    for t in range(evaluations):
        for s in sites:
            action = decide(t, s)
            run.rows.append(Row(t, s, action, error(t, s), changed if action is Action.REUSE else ""))
        full = all(decide(t, s) is Action.COMPUTE for s in sites)
        run.moments.append(Moment(Step(t, evaluations, t / evaluations, 1.0), 0.4 if full else skipped, 3 * 2**20))
    return run


def prior(evaluations: int = 6, sites: int = 4, gaps: int = 2, grams: int = 2) -> Prior:
    own = torch.Generator().manual_seed(0)
    difference = torch.rand(gaps, evaluations, sites, generator=own).double() + 0.1
    for gap in range(1, gaps + 1):
        difference[gap - 1, :gap] = NAN
    tables = {
        "sigmas": torch.arange(evaluations, 0, -1).double(),
        "power": torch.ones(evaluations, sites).double(),
        "difference": difference,
    }
    states = torch.randn(evaluations, 20, generator=own).double()
    tables |= {f"gram/{role}": states @ states.T / 20 for role in ("positive", "negative")[:grams]}
    names = tuple(s.name for s in SITES[:sites])
    return Prior(Subject("DiT", "00", "EPS", "heun", "karras", evaluations, 4.5), names, 8, tables)


def picture(figure) -> np.ndarray:
    """The drawn figure, after what every picture must be: (H, W, 3) float32 in [0, 1], and not blank."""
    image = pixels(figure)
    assert image.dtype == np.float32
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 <= image.min() < image.max() <= 1
    assert (image.std((0, 1)) > 0.01).all()
    return image


def has(image: np.ndarray, colour: str) -> bool:
    """Whether exactly this colour was painted somewhere."""
    return bool((np.abs(image - to_rgb(colour)) < 1e-3).all(2).any())


def words(figure) -> list[str]:
    """Every text in it that is not empty."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def outside(figure) -> list[str]:
    """Texts that reach beyond the paper; numbers of axes out of view are never painted and do not count."""
    from matplotlib.text import Text

    if figure.stale:
        figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    ticks = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()}
    found = []
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and id(text) not in ticks:
            box = text.get_window_extent()
            if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
                found.append(text.get_text())
    return found
