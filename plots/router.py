"""Pictures and sentences about routers of Learning-to-Cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from ..priors.prior import Prior
from ..priors.router import TABLE
from . import panels
from .panels import Grid
from .prior import title
from .style import (
    GLANCE,
    GLANCE_DPI,
    LIGHT,
    WIDTH,
    Sheet,
    Theme,
    dressed,
    grid,
    legend,
    log_scale,
    new_figure,
    step_axis,
)  # fmt: skip

WINDOW = 0.02  # of all iterations, over which the training curve is averaged


class Point(NamedTuple):
    """A cached sampling run against the same one in full."""

    label: str
    removed: float  # share of branches that were reused
    error: float  # relative L2 distance of the final latents


def draw(
    prior: Prior,
    threshold: float = 0.1,
    losses: Sequence[tuple[int, float]] = (),
    points: Sequence[Point] = (),
    rivals: Sequence[Point] = (),
    theme: Theme = LIGHT,
) -> Figure:
    """Schedule and gates per kind of branch; where they were just trained, the error in training and what reuse costs."""
    table = _gates(prior)
    rows = [0.9, 0.32, *panels.rows_of(table), *([2.4] if losses else [])]
    figure = new_figure(WIDTH, sum(rows) + 0.36 * len(rows) + 0.6, theme)
    sheet = Sheet(figure, theme, rows)
    sheet.heading("Router of Learning-to-Cache", title(prior).replace("\n", "; "), figures(prior, threshold))
    schedule = sheet.panel(1, "Schedule")
    _schedule(schedule, table, threshold, theme, sheet.size)
    maps = _maps(sheet, 2, table, threshold)
    panels.below([schedule, *maps], "evaluation of the model, from noise to picture", theme, sheet.size)
    if losses:
        names = ("Mean square error of the output, in training", "What is removed and what it costs, by penalty")
        left, right = sheet.beside_one_another(len(rows) - 1, 2, names)
        _losses(left, losses, theme, sheet.size)
        _cost(right, points, rivals, theme, sheet.size)
    return figure


def glance(prior: Prior, threshold: float = 0.1, theme: Theme = LIGHT) -> Figure:
    """The same, readable in a node 400 pixels wide: figures, schedule, gates by block."""
    table, size = _gates(prior), 10.5
    rows = [0.92, 0.3, 1.7]
    figure = new_figure(GLANCE, sum(rows) + 0.3 * len(rows) + 0.4, theme, GLANCE_DPI)
    sheet = Sheet(figure, theme, rows, size)
    sheet.heading("Router of Learning-to-Cache", title(prior).partition("\n")[0], figures(prior, threshold), 3)
    schedule, gates = sheet.panel(1, "Schedule"), sheet.panel(2, "Mean gate, by block", "block")
    _schedule(schedule, table, threshold, theme, size)
    means = table.by_block() if prior.sites else np.empty((0, prior.evaluations))
    if len(means):
        blocks = Grid.of_names([f"{i}.all" for i in range(len(means))], means)
        sheet.scale(panels.heat(gates, blocks, list(range(len(means))), theme, Normalize(0, 1), size, means), "", 2, 2)
    panels.below([schedule, gates], "evaluation, from noise to picture", theme, size)
    return figure


def summary(prior: Prior, threshold: float = 0.1, points: Sequence[Point] = (), rivals: Sequence[Point] = ()) -> str:
    """What the router does, and what it costs, in sentences."""
    said = [title(prior).replace("\n", "; ") + ".", _counted(prior, threshold) + "."]
    said += [f"Penalty {p.label} removes {p.removed:.1%} at a relative error of {p.error:.3f}." for p in points]
    said += [f"{p.label} removes {p.removed:.1%} at {p.error:.3f}." for p in rivals]
    return " ".join([*said, _advice(prior, threshold)])


def _advice(prior: Prior, threshold: float) -> str:
    """What to try next; above all where nothing is reused."""
    reused, trained, _ = _numbers(prior, threshold)
    if not trained:
        return "Try Train Router: this router has no gate, so that nothing would be reused."
    gates = prior.tables[TABLE].double().numpy()
    if not reused:
        smallest = np.nanmin(gates)
        return (
            f"Nothing would be reused, because the smallest gate is {smallest:.2g}: try threshold {np.ceil(smallest * 100) / 100:g} "
            "or more, longer training, or a larger penalty."
        )
    if reused == trained:
        return (
            "Try a smaller penalty or a lower threshold if the pictures change: every branch that has a gate is reused."
        )
    more = np.sort(gates[np.isfinite(gates)])[min(trained - 1, reused + max(trained // 10, 1) - 1)]
    return f"Try threshold {np.ceil(more * 100) / 100:g} to reuse about a tenth more, and Inspect with a trace for what it costs."


def _counted(prior: Prior, threshold: float) -> str:
    reused, trained, count = _numbers(prior, threshold)
    return (
        f"Router: {reused} of {count} branches reused ({reused / max(count, 1):.1%}) at threshold {threshold:g}; "
        f"{trained} have a gate"
    )


def _numbers(prior: Prior, threshold: float) -> tuple[int, int, int]:
    """How many branches, over all evaluations, are reused, have a gate, and are there."""
    gates = prior.tables[TABLE].numpy()
    return int((gates <= threshold).sum()), int(np.isfinite(gates).sum()), gates.size


def figures(prior: Prior, threshold: float) -> list[tuple[str, str]]:
    reused, trained, count = _numbers(prior, threshold)
    return [
        (f"{reused / max(count, 1):.0%}", "of branches reused"), (f"{threshold:g}", "threshold"),
        (f"{trained} of {count}", "have a gate"),
    ]  # fmt: skip


def _gates(prior: Prior) -> Grid:
    return Grid.of_names(prior.sites, prior.tables[TABLE].double().T.numpy())


def _schedule(axes: Axes, table: Grid, threshold: float, theme: Theme, size: float) -> None:
    """The share of branches that each evaluation reuses."""
    columns = table.errors.shape[1]
    reused = (table.errors <= threshold).mean(0) if len(table.sites) else np.zeros(columns)
    axes.bar(np.arange(columns), 1 - reused, color=theme.kinds["computed"], width=0.9)
    axes.bar(np.arange(columns), reused, bottom=1 - reused, color=theme.kinds["reused"], width=0.9)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    step_axis(axes, columns)
    panels.key(axes, ["computed", "reused"], theme, size - 2)


def _maps(sheet: Sheet, row: int, table: Grid, threshold: float) -> list[Axes]:
    theme = sheet.theme
    maps = panels.maps(sheet, row, table, table.errors, theme, Normalize(0, 1), "gate")
    for axes, rows in zip(maps, table.by_branch().values(), strict=True):
        _outline(axes, table.errors[rows] <= threshold, theme)
    if maps:
        handles = [
            Patch(facecolor=theme.kinds["reused"], label="reused"),
            Patch(facecolor=theme.empty, label="no gate: computed"),
        ]
        legend(maps[0], theme, handles, sheet.size - 2)
    return maps


def _outline(axes: Axes, chosen: NDArray[np.bool_], theme: Theme) -> None:
    """Tiles over cells (S, T) that are reused."""
    tiles = [Rectangle((step - 0.5, site - 0.5), 1, 1) for site, step in np.argwhere(chosen)]
    axes.add_collection(PatchCollection(tiles, facecolor=theme.kinds["reused"], lw=0))


def _losses(axes: Axes, losses: Sequence[tuple[int, float]], theme: Theme, size: float) -> None:
    values = np.array([loss for _, loss in losses])
    width = max(1, round(len(values) * WINDOW))
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(np.arange(len(smooth)) + width, smooth, color=theme.estimated, lw=1.5)
    if (smooth > 0).all():
        log_scale(axes)
    axes.tick_params(axis="x", length=3)
    dressed(axes, theme, axes.get_title(loc="left"), x="iteration", size=size)
    grid(axes, theme)


def _cost(axes: Axes, points: Sequence[Point], rivals: Sequence[Point], theme: Theme, size: float) -> None:
    look = {"lw": size / 6, "ms": size / 2}
    farthest = max((p.removed for p in (*points, *rivals)), default=0.0)
    for found, colour, style, name in (
        (points, theme.estimated, "o-", "L2C"),
        (rivals, theme.soft, "s", "for comparison"),
    ):
        if found:
            axes.plot([p.removed for p in found], [p.error for p in found], style, color=colour, label=name, **look)
            for point in found:
                last = point.removed == farthest
                axes.annotate(
                    point.label, (point.removed, point.error), xytext=(-7 if last else 6, 5 if last else -12), textcoords="offset points",
                    ha="right" if last else "left", fontsize=size - 2, color=theme.ink,
                )  # fmt: skip
    axes.margins(0.15)
    dressed(axes, theme, axes.get_title(loc="left"), "error of the final latent", "branches removed", size)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(axis="x", length=3)
    axes.set_ylim(bottom=0)
    grid(axes, theme, "both")
    if rivals:
        legend(axes, theme, size=size - 2, loc="upper left")
