"""Error against time of several ways to sample the same pictures, their pictures side by side, and a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from PIL import Image

from .style import GLANCE, GLANCE_DPI, LIGHT, Theme, dressed, grid, legend, new_figure

UNCACHED, CACHED, STEPS = "uncached", "cached", "other steps"
"""Kinds of points."""
MOST_PICTURES = 8
SMALLEST, LARGEST = 128, 512
"""Side in pixels of a picture in the grid: smaller ones are enlarged by a whole number, larger ones made smaller."""
LONGEST = 30


@dataclass(frozen=True)
class Point:
    """One way to sample, over all runs. The uncached one has errors of 0."""

    name: str
    kind: str
    computed: float  # share of the uncached run's work, by evaluations and branches
    seconds: tuple[float, ...]  # in the model, one per run
    uncached: tuple[float, ...]  # the same of the uncached runs beside them
    errors: tuple[float, ...]  # relative L2 of the final latent to the uncached one, one per picture
    notes: tuple[str, ...] = ()

    @property
    def time(self) -> float:
        return median(self.seconds)

    @property
    def faster(self) -> float:
        """Median over runs of uncached over own time."""
        return median(a / b if b else float("nan") for a, b in zip(self.uncached, self.seconds, strict=True))

    @property
    def error(self) -> float:
        return fmean(self.errors)

    @property
    def worst(self) -> float:
        return max(self.errors)


def table(points: Sequence[Point]) -> str:
    """One line per point, as text; below, what the runs had to say."""
    width = max([len(p.name) for p in points] + [4])
    lines = [f"{'':{width}}  computed  seconds  faster    error  worst picture"]
    for p in points:
        figures = f"{p.computed:8.0%}  {p.time:7.2f}  {p.faster:5.2f}x  {p.error:7.4f}  {p.worst:13.4f}"
        lines.append(f"{p.name:{width}}  {figures}")
    notes = [f"{p.name}: {note}" for p in points for note in p.notes]
    return "\n".join(lines + [""] * bool(notes) + notes)


NOT_FINITE = (
    "The uncached latents are not finite, so nothing can be\ncompared with them: try another precision of the weights."
)


def draw(points: Sequence[Point], about: str, theme: Theme = LIGHT) -> Figure:
    """Error against time, readable in a node 400 pixels wide. Down and to the left is better."""
    points = [p for p in points if np.isfinite(p.error)]
    figure = new_figure(GLANCE, 4.4, theme, GLANCE_DPI)
    axes = dressed(
        figure.add_subplot(), theme, "", "relative L2 error of the final latent", "seconds in the model", size=12
    )
    figure.suptitle("Error against time", x=0.02, ha="left", fontsize=13.5, fontweight="bold", color=theme.ink)
    axes.set_title(textwrap.shorten(about, 68, placeholder="…"), loc="left", fontsize=9.5, color=theme.soft, pad=8)
    grid(axes, theme, "both")
    looks = {
        UNCACHED: {"marker": "D", "color": theme.soft},
        CACHED: {"marker": "o", "color": theme.kinds["computed"]},
        STEPS: {"marker": "s", "color": theme.kinds["reused"]},
    }
    for kind, look in looks.items():
        own = sorted((p for p in points if p.kind == kind), key=lambda p: p.time)
        if own:
            line = "--" if kind == STEPS else ""
            axes.plot(
                [p.time for p in own], [p.error for p in own], ls=line, lw=0.9, ms=8, mec=theme.paper, label=kind,
                zorder=3, **look,
            )  # fmt: skip
    if not points:
        axes.text(
            0.5, 0.5, NOT_FINITE, ha="center", va="center", transform=axes.transAxes, color=theme.soft, fontsize=10
        )
        return figure
    axes.set_xlim(0, max(p.time for p in points) * 1.12 or 1)
    top = max(p.error for p in points) * 1.18 or 1
    axes.set_ylim(-0.05 * top, top)
    if any(p.kind == STEPS for p in points):
        legend(axes, theme, size=9.5, loc="lower right", bbox_to_anchor=(1.0, 1.1))
    figure.get_layout_engine().execute(figure)
    _label(axes, points, theme)
    return figure


SIDES = ((1, 0), (1, 1), (1, -1), (0, 1), (-1, 1), (-1, 0), (0, -1), (-1, -1))
"""Where a label may lie beside its point, best first."""
DOT, NEAR, FAR = 11, 16, (16, 40, 70)
"""Pixels: half a dot; how far a label lies from the middle of its own without a line to it, and how far it may lie."""


def _label(axes: Axes, points: Sequence[Point], theme: Theme) -> None:
    """Each point's name and speed, beside it where that hides least."""
    renderer, room = axes.figure.canvas.get_renderer(), axes.get_window_extent()
    dots = axes.transData.transform([(p.time, p.error) for p in points])
    taken = [Bbox.from_extents(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in dots]
    for point, (x, y) in sorted(
        zip(points, dots, strict=True), key=lambda entry: (entry[0].kind != UNCACHED, -entry[1][1])
    ):
        name = textwrap.shorten(point.name, LONGEST, placeholder="…")
        text = name if point.kind == UNCACHED else f"{name}\n{point.faster:.2f}x"
        label = axes.annotate(
            text, (point.time, point.error), (0, 0), textcoords="offset pixels", ha="center", va="center", fontsize=9.5,
            color=theme.ink, linespacing=1.05, arrowprops={"arrowstyle": "-", "color": theme.soft, "lw": 0.7, "shrinkB": 4},
        )  # fmt: skip
        size = axes.text(0, 0, text, fontsize=9.5, linespacing=1.05)
        extent = size.get_window_extent(renderer)
        size.remove()
        w, h = extent.width / 2, extent.height / 2

        def cost(place: tuple[int, int, int], x=x, y=y, w=w, h=h) -> float:
            distance, dx, dy = place
            cx, cy = x + dx * (w + distance), y + dy * (h + distance)
            box = Bbox.from_extents(cx - w, cy - h, cx + w, cy + h)
            outside = 4 * w * h - _shared(box, room)
            return sum(_shared(box, other) for other in taken) + outside + 4 * distance + SIDES.index((dx, dy))

        distance, dx, dy = min(((d, *side) for d in FAR for side in SIDES), key=cost)
        across, down = dx * (w + distance), dy * (h + distance)
        label.set_position((across, down))
        label.set_multialignment({1: "left", 0: "center", -1: "right"}[dx])
        label.set_path_effects([withStroke(linewidth=2.5, foreground=theme.paper)])
        label.arrow_patch.set_visible(distance > NEAR)
        taken.append(Bbox.from_extents(x + across - w, y + down - h, x + across + w, y + down + h))


def _shared(a: Bbox, b: Bbox) -> float:
    """Area of what two boxes have in common."""
    both = Bbox.intersection(a, b)
    return both.width * both.height if both is not None else 0.0


def pictures(rows: Sequence[tuple[Point, np.ndarray]], theme: Theme = LIGHT) -> Figure:
    """The pictures (B, H, W, 3) of every point in a row, pixel for pixel; the first MOST_PICTURES of them."""
    if not rows:
        figure = new_figure(GLANCE, 1.0, theme, GLANCE_DPI)
        figure.text(0.5, 0.5, "Connect a VAE to see the pictures side by side.", ha="center", va="center", fontsize=11, color=theme.soft)  # fmt: skip
        return figure
    shown = [(point, [sized(picture) for picture in batch[:MOST_PICTURES]]) for point, batch in rows]
    height, width = shown[0][1][0].shape[:2]
    columns, gap = len(shown[0][1]), 6
    scale = max(height, 160) / 160
    left = round(270 * scale)
    size = (left + columns * (width + gap) + gap, len(shown) * (height + gap) + gap)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    for row, (point, batch) in enumerate(shown):
        top = size[1] - gap - row * (height + gap)
        for column, picture in enumerate(batch):
            figure.figimage(picture, left + gap + column * (width + gap), top - height, origin="upper")
        x, middle, points = gap * 2 / size[0], (top - height / 2) / size[1], 0.72 * scale
        figure.text(
            x, middle, _wrapped(point.name), fontsize=19 * points, color=theme.ink, va="bottom", linespacing=1.15
        )
        figure.text(
            x, middle, "\n" + _said(point), fontsize=16 * points, color=theme.soft, va="center", linespacing=1.3
        )
    return figure


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 24)[:3])


def _said(point: Point) -> str:
    if point.kind == UNCACHED:
        return f"{point.time:.2f} s"
    return f"{point.faster:.2f}x, error {point.error:.3f}"


def sized(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] -> a size that can be looked at, as bytes."""
    side = max(picture.shape[:2])
    if side < SMALLEST:
        picture = picture.repeat(-(-SMALLEST // side), 0).repeat(-(-SMALLEST // side), 1)
    if side > LARGEST:
        small = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
        factor = LARGEST / side
        new = tuple(max(1, round(length * factor)) for length in small.size)
        return np.asarray(small.resize(new, Image.Resampling.LANCZOS))
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)
