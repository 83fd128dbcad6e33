"""One look for every figure: a palette that colour-blind readers can tell apart, sizes that read inside a node."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {
    "compute": "#0072B2", "reuse": "#E69F00", "partial": "#009E73", "mixed": "#009E73", "worst": "#D55E00",
    "bytes": "#555555",
}  # fmt: skip
HEAT = "Blues"
RC = {"font": 11, "title": 13, "dpi": 110}


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=RC["dpi"], layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The drawn figure as (H, W, 3) float32 in [0, 1], the layout of a ComfyUI IMAGE."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(np.float32) / 255


def heat_map(axes, errors: np.ndarray, sites: list[str], norm: LogNorm | None):
    """errors (S, T), nan where unknown; sites labelled as sparsely as it takes to stay readable."""
    axes.set_facecolor("#DDDDDD")
    columns = errors.shape[1]
    image = axes.imshow(
        np.ma.masked_invalid(errors), aspect="auto", interpolation="nearest", cmap=HEAT, norm=norm,
        extent=(-0.5, columns - 0.5, len(sites) - 0.5, -0.5),
    )  # fmt: skip
    every = max(1, -(-len(sites) // 14))
    axes.set_yticks(range(0, len(sites), every), [sites[i] for i in range(0, len(sites), every)], fontsize=9)
    axes.set_ylabel("branch")
    step_axis(axes, columns)
    return image


def step_axis(axes, columns: int) -> None:
    axes.set_xlim(-0.6, columns - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def log_norm(values: np.ndarray) -> LogNorm | None:
    """Colour scale over the positive values, or None where there is none."""
    good = values[np.isfinite(values) & (values > 0)]
    if not good.size:
        return None
    return LogNorm(max(good.min(), good.max() * 1e-4), max(good.max(), good.min() * 1.01))


def statistics_over_sites(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and worst (T,) over sites of errors (S, T), nan where a column is empty."""
    known = np.isfinite(errors).any(0)
    mean, worst = np.full(errors.shape[1], np.nan), np.full(errors.shape[1], np.nan)
    mean[known], worst[known] = np.nanmean(errors[:, known], 0), np.nanmax(errors[:, known], 0)
    return mean, worst
