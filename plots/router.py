"""Pictures and sentences about routers of Learning-to-Cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from ..priors.prior import Prior
from ..priors.router import TABLE
from .prior import title
from .style import COLOURS, HEAT, RC, new_figure, step_axis

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
) -> Figure:
    """Gates per step and branch; below, where they were just trained: the error in training, and what reuse costs."""
    figure = new_figure(10.5, 9.5 if losses else 5.5)
    figure.suptitle(
        f"{title(prior)}\n{_counted(prior, threshold)}", fontsize=RC["title"], x=0.02, ha="left", linespacing=1.5
    )
    rows = [["map", "map"], ["losses", "cost"]] if losses else [["map", "map"]]
    layout = figure.subplot_mosaic(rows, height_ratios=(1.3, 1)[: len(rows)])
    _map(figure, layout["map"], prior, threshold)
    if losses:
        _losses(layout["losses"], losses)
        _cost(layout["cost"], points, rivals)
    return figure


def summary(prior: Prior, threshold: float = 0.1, points: Sequence[Point] = (), rivals: Sequence[Point] = ()) -> str:
    """What the router does, and what it costs, in sentences."""
    said = [title(prior).replace("\n", "; ") + ".", _counted(prior, threshold) + "."]
    said += [f"Penalty {p.label} removes {p.removed:.1%} at a relative error of {p.error:.3f}." for p in points]
    said += [f"{p.label} removes {p.removed:.1%} at {p.error:.3f}." for p in rivals]
    return " ".join(said)


def _counted(prior: Prior, threshold: float) -> str:
    gates = prior.tables[TABLE].numpy()
    reused, trained = int((gates <= threshold).sum()), int(np.isfinite(gates).sum())
    return (
        f"Router: {reused} of {gates.size} branches reused ({reused / max(gates.size, 1):.1%}) at threshold {threshold:g}; "
        f"{trained} have a gate"
    )


def _map(figure: Figure, axes, prior: Prior, threshold: float) -> None:
    gates = prior.tables[TABLE].numpy().T
    axes.set_facecolor("#DDDDDD")
    columns, count = prior.evaluations, len(prior.sites)
    image = axes.imshow(
        np.ma.masked_invalid(gates), aspect="auto", interpolation="nearest", cmap=HEAT, vmin=0, vmax=1,
        extent=(-0.5, columns - 0.5, count - 0.5, -0.5),
    )  # fmt: skip
    for site, step in np.argwhere(gates <= threshold):
        axes.add_patch(Rectangle((step - 0.5, site - 0.5), 1, 1, lw=0, facecolor=COLOURS["reuse"]))
    every = max(1, -(-count // 14))
    axes.set_yticks(range(0, count, every), prior.sites[::every], fontsize=9)
    axes.set_xlabel("evaluation of the model, from noise to picture")
    axes.set_title("Gates", loc="left", fontsize=RC["font"])
    step_axis(axes, columns)
    handles = [Patch(facecolor=COLOURS["reuse"], label="reused"), Patch(facecolor="#DDDDDD", label="no gate: computed")]
    axes.legend(
        handles=handles, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0.1
    )
    figure.colorbar(image, ax=axes, label="gate", pad=0.01)


def _losses(axes, losses: Sequence[tuple[int, float]]) -> None:
    values = np.array([loss for _, loss in losses])
    width = max(1, round(len(values) * WINDOW))
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(np.arange(len(smooth)) + width, smooth, color=COLOURS["compute"], lw=1.5)
    if (smooth > 0).all():
        axes.set_yscale("log")
    axes.set_title("Mean square error of the output, in training", loc="left", fontsize=RC["font"])
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.25, which="both")


def _cost(axes, points: Sequence[Point], rivals: Sequence[Point]) -> None:
    axes.set_title("What is removed and what it costs, by penalty", loc="left", fontsize=RC["font"])
    axes.set_xlabel("branches removed")
    axes.set_ylabel("relative L2 error of the final latent")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for found, colour, style, name in ((points, "compute", "o-", "L2C"), (rivals, "bytes", "s", "for comparison")):
        if found:
            x, y = [p.removed for p in found], [p.error for p in found]
            axes.plot(x, y, style, color=COLOURS[colour], label=name)
            for point in found:
                axes.annotate(
                    point.label, (point.removed, point.error), xytext=(5, 5), textcoords="offset points", fontsize=9
                )
    axes.margins(0.15)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    if rivals:
        axes.legend(fontsize=9, loc="upper left")
