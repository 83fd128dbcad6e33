"""Pictures and sentences about priors."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..cache_core.trace import human_bytes
from ..priors.prior import Prior
from . import panels
from .panels import Grid
from .style import (
    GLANCE,
    GLANCE_DPI,
    LIGHT,
    WIDTH,
    Sheet,
    Theme,
    grid,
    legend,
    log_norm,
    log_scale,
    new_figure,
    note,
    plain_numbers,
    statistics_over_sites,
    step_axis,
)  # fmt: skip

MARKS = "osD^v"
NONE = "only the network's output was measured, no branches"


def draw(prior: Prior, theme: Theme = LIGHT) -> Figure:
    """Error of reuse per step and distance, a map per kind of branch, likeness of the outputs of any two steps."""
    grams, table = [n for n in ("gram/positive", "gram/negative") if n in prior.tables], _nearest(prior)
    rows = [0.9, 2.0, *panels.rows_of(table), *([3.6] if grams else [])]
    figure = new_figure(WIDTH, sum(rows) + 0.35 * len(rows) + 0.6, theme)
    sheet = Sheet(figure, theme, rows)
    sheet.heading(*_named(prior), figures(prior))
    curve = sheet.panel(1, "Error of reuse per step, by how many steps before the reused output is", "relative L2")
    _curves(curve, prior, theme, sheet.size)
    maps = panels.maps(sheet, 2, table, table.errors, theme, log_norm(table.errors), "relative L2, one step back")
    panels.below([curve, *maps], _steps(prior), theme, sheet.size)
    if grams:
        names = [f"1 - cosine of outputs, {name.removeprefix('gram/')}" for name in grams]
        for axes, name in zip(sheet.beside_one_another(len(rows) - 1, 2, names), grams, strict=True):
            _likeness(figure, axes, prior, name, theme, sheet.size)
    return figure


def glance(prior: Prior, theme: Theme = LIGHT) -> Figure:
    """The same, readable in a node 400 pixels wide: figures, curves, one map by block."""
    table, size = _nearest(prior), 10.5
    rows = [0.92, 1.4, 1.3]
    figure = new_figure(GLANCE, sum(rows) + 0.3 * len(rows) + 0.4, theme, GLANCE_DPI)
    sheet = Sheet(figure, theme, rows, size, beside=bool(prior.sites))
    sheet.heading(*_named(prior), figures(prior), 3)
    curve, by_block = sheet.panel(1, "Error of reuse"), sheet.panel(2, "Reusing the step before, by block")
    _curves(curve, prior, theme, size)
    if prior.sites:
        means = table.by_block()
        blocks = Grid.of_names([f"{i}.all" for i in range(len(means))], means)
        norm = log_norm(means)
        image = panels.heat(by_block, blocks, list(range(len(means))), theme, norm, size, means)
        if norm is not None:
            sheet.scale(image, "", 2, 2)
    else:
        note(by_block, theme, NONE, size - 1)
    panels.below([curve, by_block], "evaluation, from noise to picture", theme, size)
    return figure


def _nearest(prior: Prior) -> Grid:
    """Errors of reusing the evaluation before, of branches."""
    return Grid.of_names(prior.sites, prior.reuse_error(1).T.numpy())


def _errors(prior: Prior, gap: int) -> NDArray:
    """(branches, evaluations) of reuse, or (1, evaluations) of the network's output where no branches were measured."""
    return prior.reuse_error(gap).T.numpy() if prior.sites else prior.output_error(gap).numpy()[None]


def _named(prior: Prior) -> tuple[str, str]:
    s = prior.subject
    first = f"Prior of {s.architecture} ({s.prediction})"
    return first, f"{s.settings}; {_size(prior)}"


def _size(prior: Prior) -> str:
    what = f"{len(prior.sites)} branches" if prior.sites else "the network's output alone"
    return f"{prior.samples} picture{'s'[: prior.samples != 1]}, {what}, {human_bytes(prior.nbytes)}"


def title(prior: Prior) -> str:
    s = prior.subject
    what = f"Prior of {s.architecture} ({s.prediction}): {s.settings}"
    return f"{what}\n{_size(prior)}"


def _steps(prior: Prior) -> str:
    sigmas = prior.tables["sigmas"]
    return f"evaluation of the model, from noise to picture (noise {sigmas[0]:.3g} to {sigmas[-1]:.3g})"


def figures(prior: Prior) -> list[tuple[str, str]]:
    """Mean errors of reuse by distance, and the calmest and the wildest step."""
    found: list[tuple[str, str]] = []
    for gap in range(1, min(len(prior.tables["difference"]), 2) + 1):
        errors = _errors(prior, gap)
        if np.isfinite(errors).any():
            found.append((f"{np.nanmean(errors):.3f}", f"error, {gap} step{'s'[: gap > 1]} back"))
    mean = _mean_of(prior)
    if np.isfinite(mean).any():
        found += [(f"step {np.nanargmin(mean)}", "moves least"), (f"step {np.nanargmax(mean)}", "moves most")]
    return found


def _mean_of(prior: Prior) -> NDArray:
    return statistics_over_sites(_errors(prior, 1))[0]


def _curves(axes: Axes, prior: Prior, theme: Theme, size: float) -> None:
    step_axis(axes, prior.evaluations)
    colours = (theme.estimated, theme.true, *(theme.kinds[kind] for kind in ("partial", "corrected", "reused")))
    looks, handles = cycle(zip(colours, MARKS, strict=True)), []
    for gap, (colour, mark) in zip(range(1, len(prior.tables["difference"]) + 1), looks, strict=False):
        values = _errors(prior, gap)
        handles.append(panels.curve(axes, values, theme, f"{gap} back", colour, "-", mark, size, band=gap == 1))
    handles = [handle for handle in handles if handle is not None]
    if not handles:
        note(axes, theme, "nothing moved, or nothing was met twice", size - 1)
        return
    log_scale(axes)
    grid(axes, theme)
    legend(axes, theme, handles[:6], size - 2)


def _likeness(figure: Figure, axes: Axes, prior: Prior, name: str, theme: Theme, size: float) -> None:
    gram = prior.tables[name].double().numpy()
    norm = np.sqrt(np.clip(np.diag(gram), 1e-30, None))
    distance = np.clip(1 - gram / np.outer(norm, norm), 1e-6, None)
    scale = log_norm(distance + np.where(np.eye(len(gram)), np.nan, 0))
    image = axes.imshow(distance, cmap=theme.heat, norm=scale, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("evaluation")
    axes.set_ylabel("evaluation")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    if scale is not None:
        plain_numbers(bar.ax.yaxis, scale.vmax / scale.vmin)
    bar.ax.tick_params(which="both", colors=theme.soft, labelsize=size - 2, length=0)


def summary(prior: Prior) -> str:
    """What the prior is, what reuse would cost, and what to try with it."""
    said = [title(prior).replace("\n", "; ") + "."]
    errors = _errors(prior, 1)
    if np.isfinite(errors).any():
        mean, _ = statistics_over_sites(errors)
        calm, wild = int(np.nanargmin(mean)), int(np.nanargmax(mean))
        s, t = np.unravel_index(np.nanargmax(errors), errors.shape)
        most = (
            f", and the branch that moves most is {prior.sites[s]}, step {t} ({errors[s, t]:.3f})"
            if prior.sites
            else ""
        )
        said.append(
            f"Reusing the step before costs {np.nanmean(errors):.3f} on average, least at step {calm} ({mean[calm]:.3f}), "
            f"most at step {wild} ({mean[wild]:.3f}){most}."
        )
        said.append(_advice(prior, mean))
    return " ".join(said)


def _advice(prior: Prior, mean: NDArray) -> str:
    if prior.plans:
        return "Try Plan Policy, for which this prior holds plans."
    thirds = [part for part in np.array_split(np.arange(len(mean)), 3) if np.isfinite(mean[part]).any()]
    calm = min(thirds, key=lambda part: np.nanmean(mean[part]))
    if len(thirds) < 3:
        return "Try more steps: so few leave hardly anything to reuse."
    return (
        f"Try FORA Policy from start {calm[0] / len(mean):.2f} to end {(calm[-1] + 1) / len(mean):.2f}, where reuse costs "
        f"{np.nanmean(mean[calm]):.3f}, or Search Plans for steps chosen by sampling."
    )
