"""Draws docs/icon.png and docs/banner.png, which the registry shows: python tools/dev.py artwork.

Both say what the pack does: some steps are computed (blue), those in between are reused (amber), and a curve tells what
that costs. The banner's curve is the one that was measured for docs/demo_report.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAPER, INK, SOFT = "#15181E", "#F2F4F6", "#A7B0BB"
COMPUTED, REUSED, CURVE = "#2E86C8", "#F0AC1E", "#EDF2F7"
DPI = 100


def bars(ax, heights: np.ndarray, computed: np.ndarray, width: float, line: float) -> None:
    """A bar per step: filled where it is computed, an outline where it is reused; the curve runs along their tops."""
    for x, (height, full) in enumerate(zip(heights, computed, strict=True)):
        edge = COMPUTED if full else REUSED
        rounded = f"round,pad=0,rounding_size={width * 0.22}"
        box = FancyBboxPatch((x - width / 2, 0), width, height, boxstyle=rounded, mutation_aspect=1 / ax.aspect_of_data)
        box.set(facecolor=edge if full else to_rgba(edge, 0.16), edgecolor=edge, linewidth=line)
        ax.add_patch(box)


def panel(figure: Figure, place: tuple[float, float, float, float], count: int, top: float):
    """Axes without a frame for `count` bars up to `top`, given as (left, bottom, width, height) of the figure."""
    ax = figure.add_axes(place)
    ax.set_axis_off()
    ax.set_xlim(-0.7, count - 0.3)
    ax.set_ylim(-top * 0.02, top)
    wide, high = figure.get_size_inches()
    ax.aspect_of_data = (place[3] * high / top) / (place[2] * wide / count)
    return ax


def saved(figure: Figure, name: str) -> None:
    FigureCanvasAgg(figure).print_png(DOCS / name, pil_kwargs={"optimize": True})
    print(f"docs/{name}: {(DOCS / name).stat().st_size / 1024:.0f} KiB")


def icon() -> None:
    """400 x 400: five steps, of which two are reused."""
    figure = Figure(figsize=(4, 4), dpi=DPI)
    figure.patch.set_alpha(0)
    tile = figure.add_axes((0, 0, 1, 1))
    tile.set_axis_off()
    tile.set(xlim=(0, 1), ylim=(0, 1))
    shape = FancyBboxPatch((0, 0), 1, 1, boxstyle="round,pad=0,rounding_size=0.2", facecolor=PAPER, edgecolor="none")
    tile.add_patch(shape)
    heights = np.array([0.76, 0.56, 0.46, 0.48, 0.62])
    ax = panel(figure, (0.13, 0.17, 0.74, 0.66), len(heights), 1.0)
    bars(ax, heights, np.array([1, 0, 1, 0, 1]), 0.66, 5)
    x = np.linspace(0, 4, 200)
    curve = np.polynomial.Polynomial.fit(np.arange(5), heights, 4)(x) + 0.16
    ax.plot(x, curve, color=CURVE, linewidth=9, solid_capstyle="round")
    saved(figure, "icon.png")


def measured(interval: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(error that reuse would have had at each step, which steps were computed), with reused steps interpolated."""
    report = json.loads((DOCS / "demo_report.json").read_text())
    steps = next(run for run in report["runs"] if f"N={interval}" in run["policy"])["per_step"]
    computed = np.array([step["computed"] > 0.5 for step in steps])
    known = [i for i, step in enumerate(steps) if step["error_mean"] is not None]
    errors = np.interp(range(len(steps)), known, [steps[i]["error_mean"] for i in known])
    return errors, computed


def banner() -> None:
    """1680 x 720, the registry's 21 : 9."""
    figure = Figure(figsize=(16.8, 7.2), dpi=DPI, facecolor=PAPER)
    errors, computed = measured()
    heights = np.sqrt(errors)
    ax = panel(figure, (0.05, 0.0, 0.9, 0.44), len(heights), heights.max() * 1.16)
    bars(ax, heights, computed, 0.62, 1.6)
    smooth = np.convolve(np.pad(heights, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    ax.plot(np.arange(len(heights)), smooth + heights.max() * 0.1, color=CURVE, linewidth=3.5, solid_capstyle="round")
    text = {"va": "baseline", "family": "DejaVu Sans"}
    figure.text(0.055, 0.74, "PriorCache", color=INK, fontsize=66, weight="bold", **text)
    figure.text(
        0.058, 0.625, "Faster diffusion transformers, and a picture of what it costs", color=SOFT, fontsize=25, **text
    )
    for left, colour, word in (
        (0.058, COMPUTED, "computed"),
        (0.19, REUSED, "reused"),
        (0.295, CURVE, "error, measured"),
    ):
        figure.text(left, 0.515, "\u25a0", color=colour, fontsize=20, **text)
        figure.text(left + 0.018, 0.515, word, color=SOFT, fontsize=18, **text)
    saved(figure, "banner.png")


def main() -> None:
    icon()
    banner()


if __name__ == "__main__":
    main()
