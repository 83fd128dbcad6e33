"""One look for every figure: a palette that colour-blind readers can tell apart, on light and on dark paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

RC = {"font": 11, "title": 13, "dpi": 110}
WIDTH = 10.5
"""Width in inches of a figure in full."""
GLANCE = 5.0
"""Width in inches of a figure that is read inside a node, at twice the pixels of a node 400 wide."""
GLANCE_DPI = 160
LOW = 0.6  # inches


@dataclass(frozen=True)
class Theme:
    """Colours by what they mean. `kinds`: what became of a branch; `heat`: from no error to the largest."""

    name: str
    paper: str
    ink: str
    soft: str  # labels and captions
    grid: str
    empty: str  # what is not known
    kinds: dict[str, str] = field(repr=False)
    estimated: str
    true: str
    memory: str
    heat: Colormap = field(repr=False)
    better: Colormap = field(repr=False)  # less error, the same, more error
    share: float = 0.5  # of a colour in its tint

    def tint(self, kind: str) -> str:
        """A kind's colour, mixed with paper."""
        return to_hex(self.share * np.array(to_rgb(self.kinds[kind])) + (1 - self.share) * np.array(to_rgb(self.paper)))


def _ramp(name: str, *colours: str) -> Colormap:
    return LinearSegmentedColormap.from_list(name, colours)


LIGHT = Theme(
    "light", "#FFFFFF", "#1B1F24", "#57606A", "#D5DAE0", "#E4E7EB",
    {"computed": "#0072B2", "partial": "#009E73", "reused": "#E69F00", "corrected": "#CC79A7", "forecast": "#7FCDF5"},
    "#0072B2", "#C44E00", "#57606A",
    _ramp("light heat", "#F4F8FC", "#A9CCE6", "#4A90C6", "#0B4F8A", "#08264A"),
    _ramp("light better", "#0B4F8A", "#7FB4DC", "#F5F5F5", "#F1A663", "#9A3D00"),
)  # fmt: skip
DARK = Theme(
    "dark", "#1F2023", "#ECEDEE", "#A4ABB4", "#3C4046", "#34373C",
    {"computed": "#2E86C8", "partial": "#22BE90", "reused": "#F0AC1E", "corrected": "#BE6094", "forecast": "#B5E3FB"},
    "#5AB0EE", "#FF8A3D", "#A4ABB4",
    _ramp("dark heat", "#242A33", "#2A527A", "#3D86BE", "#86C5EE", "#EDF8FF"),
    _ramp("dark better", "#8CCBF5", "#2F6EA6", "#2B2E33", "#B4661F", "#FFB26B"), 0.4,
)  # fmt: skip
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


PLAIN = {"parse_math": False}
"""Of words that may come from a file: what stands between dollar signs is no formula."""


def new_figure(width: float, height: float, theme: Theme = LIGHT, dpi: int = RC["dpi"]) -> Figure:
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor=theme.paper)
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.06)
    FigureCanvasAgg(figure)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The drawn figure as (H, W, 3) float32 in [0, 1], the layout of a ComfyUI IMAGE."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(np.float32) / 255


def dressed(axes: Axes, theme: Theme, title: str = "", y: str = "", x: str = "", size: float = RC["font"]) -> Axes:
    """Axes with the theme's colours and their words."""
    axes.set_facecolor(theme.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(which="both", colors=theme.soft, labelsize=size - 2, length=3, width=0.8)
    axes.tick_params(axis="x", length=0)
    axes.set_title(title, loc="left", fontsize=size, color=theme.ink, pad=6, **PLAIN)
    axes.set_ylabel(y, fontsize=size - 1.5, color=theme.soft, **PLAIN)
    axes.set_xlabel(x, fontsize=size - 1.5, color=theme.soft, **PLAIN)
    axes.set_axisbelow(True)
    return axes


def grid(axes: Axes, theme: Theme, axis: str = "y") -> None:
    axes.grid(axis=axis, which="major", color=theme.grid, lw=0.7)


def log_scale(axes: Axes) -> None:
    """For what was drawn already, all of it above zero."""
    low, high = axes.dataLim.minposy, axes.dataLim.y1
    room = max((high / low) ** 0.07, 1.1)
    axes.set_ylim(low / room, high * room)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis, high / low)


def plain_numbers(axis: Axis, span: float) -> None:
    """Numbers of a logarithmic axis as they are said: 0.1, not ten to the power of minus one."""
    subs = (
        (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        if span < 4
        else (1.0, 2.0, 5.0)
        if span < 50
        else (1.0, 3.0)
        if span < 1000
        else (1.0,)
    )
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def legend(
    axes: Axes, theme: Theme, handles: Sequence | None = None, size: float = RC["font"] - 2, rows: int = 1, **where
) -> None:
    """On the line of the title, where it hides nothing."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    if not handles:
        return
    where = where or {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
    drawn = axes.legend(
        handles=handles, ncols=-(-len(handles) // rows), frameon=False, fontsize=size, labelcolor=theme.soft, borderaxespad=0.15,
        handlelength=1.3, handletextpad=0.45, columnspacing=1.1, **where,
    )  # fmt: skip
    for text in drawn.get_texts():
        text.set(**PLAIN)


@dataclass
class Sheet:
    """Panels below one another that share their left and right edge; what they need beside them goes into a column."""

    part: Figure | SubFigure
    theme: Theme
    heights: Sequence[float]  # inches, the heading first
    size: float = RC["font"]
    beside: bool = True

    def __post_init__(self):
        widths = (1, 0.016) if self.beside else (1, 1e-4)
        self.spec = self.part.add_gridspec(len(self.heights), 2, width_ratios=widths, height_ratios=self.heights)
        self.head = self.part.add_subplot(self.spec[0, :])
        self.head.axis("off")
        self.head.set(xlim=(0, 1), ylim=(0, 1))
        self.first: Axes | None = None

    def panel(self, row: int, title: str = "", y: str = "", share: bool = True) -> Axes:
        axes = self.part.add_subplot(self.spec[row, 0], sharex=self.first if share else None)
        if share and self.first is None:
            self.first = axes
        return dressed(axes, self.theme, title, y, size=self.size)

    def beside_one_another(self, row: int, count: int, titles: Sequence[str]) -> list[Axes]:
        """Panels that share a row, each with axes of its own."""
        spec = self.spec[row, :].subgridspec(1, count)
        return [
            dressed(self.part.add_subplot(spec[0, i]), self.theme, title, size=self.size)
            for i, title in enumerate(titles)
        ]

    def scale(self, image, label: str, first: int, last: int, ticks: Sequence[float] = ()) -> None:
        """A colour bar beside these rows, with numbers of its own or these; beside a low row there is room for its ends."""
        axes = self.part.add_subplot(self.spec[first : last + 1, 1])
        bar = self.part.colorbar(image, cax=axes)
        bar.outline.set_visible(False)
        axes.tick_params(which="both", colors=self.theme.soft, labelsize=self.size - 2, length=0)
        low = sum(self.heights[first : last + 1]) < LOW
        if ticks:
            bar.set_ticks(ticks, labels=[f"{tick:.2g}x" for tick in ticks])
            bar.minorticks_off()  # a logarithmic scale labels its own beside these
        elif low:
            ends = (image.norm.vmin, image.norm.vmax)
            bar.set_ticks(ends, labels=[f"{end:.1g}" for end in ends])
            for text, side in zip(axes.get_yticklabels(), ("bottom", "top"), strict=True):
                text.set_verticalalignment(side)
        elif isinstance(image.norm, LogNorm):
            plain_numbers(axes.yaxis, image.norm.vmax / image.norm.vmin)
        if not low:
            bar.set_label(label, fontsize=self.size - 1.5, color=self.theme.soft)

    def heading(self, title: str, about: str, figures: Sequence[tuple[str, str]] = (), columns: int = 5) -> None:
        """What it is; softer, what it was about; and the figures (value, caption) that matter."""
        theme, size, line = self.theme, self.size, 1 / (72 * self.heights[0])
        self._text(0, 1, title, size + 3, theme.ink, fontweight="bold")
        self._text(0, 1 - (size + 8) * line, about, size - 1, theme.soft)
        for i, (value, caption) in enumerate(figures[:columns]):
            at, wide = i / columns, 0.95 / columns
            self._text(at, 1 - (2 * size + 15) * line, value, size + 6, theme.ink, wide)
            self._text(at, 1 - (3 * size + 24) * line, caption, size - 2, theme.soft, wide)

    def _text(self, x: float, y: float, text: str, size: float, colour: str, wide: float = 1.0, **look) -> None:
        """At the top left of (x, y), no wider than this share: smaller, and then cut, if need be."""
        drawn = self.head.text(x, y, text, fontsize=size, color=colour, va="top", ha="left", **PLAIN, **look)
        drawn.set_in_layout(False)
        room = self.part.bbox.width * 0.84 * wide
        width = drawn.get_window_extent().width
        drawn.set_fontsize(size * min(1.0, max(0.98 * room / max(width, 1), 0.7)))
        while (width := drawn.get_window_extent().width) > room and len(text) > 4:
            text = text.rpartition(", ")[0] or text[: min(int(len(text) * room / width), len(text) - 2)].rstrip(" ,;")
            drawn.set_text(f"{text}…")


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip(" ,;") + "…"


def note(axes: Axes, theme: Theme, text: str, size: float = RC["font"] - 1) -> None:
    """In place of what cannot be drawn."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=theme.soft, fontsize=size)
    axes.set_yticks([])


def step_axis(axes, columns: int) -> None:
    axes.set_xlim(-0.5, max(columns, 1) - 0.5)
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
