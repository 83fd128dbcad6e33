"""Pictures of sampling runs: one in full, one that reads inside a node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..cache_core.sites import MODEL, STACK
from ..cache_core.trace import KINDS, RunTrace, human_bytes
from ..priors.prior import Prior
from . import panels
from .panels import Grid
from .style import GLANCE, GLANCE_DPI, LIGHT, RC, WIDTH, Sheet, Theme, legend, log_norm, new_figure, note
from .words import summary

__all__ = ["draw", "figures", "glance", "summary"]

MOST_RUNS, MOST_AT_A_GLANCE = 12, 3
WAITING = (
    "No sampling run yet: connect the latent of the sampler behind Apply Cache, so that Inspect waits for it (where a node gives images only, "
    "the latent of VAE Encode behind it). "
    "Where it is connected, the sampler is wired past this node's model, another cache between the two has taken its place, or "
    "ComfyUI had kept its latent from an earlier prompt: change the seed."
)
MOST_WORDS = 5
"""Of a key that has room beside a title; more are written in two lines, smaller."""
TITLES = 0.33  # inches; of a panel's title


def draw(
    runs: Sequence[RunTrace], otherwise: str = WAITING, theme: Theme = LIGHT, prior: Prior | None = None
) -> Figure:
    """Per run: schedule, error per step, a map per kind of branch, time and memory. prior: what it expects, too."""
    runs, left_out = list(runs[-MOST_RUNS:]), len(runs[:-MOST_RUNS])
    if not runs:
        return empty(otherwise, theme)
    heights = [_heights(run) for run in runs]
    tall = [sum(rows) + TITLES * len(rows) + 0.45 for rows in heights]
    figure = new_figure(WIDTH, sum(tall), theme)
    parts = np.atleast_1d(figure.subfigures(len(runs), 1, height_ratios=tall))
    more = f"  (the last {len(runs)} runs; {left_out} earlier ones are not drawn)" if left_out else ""
    maps = [_full(*one, theme, prior, more) for one in zip(parts, runs, heights, strict=True)]
    _dotted(figure, maps, theme)
    return figure


def empty(text: str, theme: Theme, width: float = WIDTH, dpi: int = RC["dpi"]) -> Figure:
    figure = new_figure(width, 2, theme, dpi)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=RC["font"], color=theme.soft, wrap=True)
    return figure


def _heights(run: RunTrace) -> list[float]:
    """Inches: heading, schedule, errors, maps, time, memory."""
    return [0.9, 0.32, 1.9, *(panels.rows_of(Grid.of(run)) or [0.3]), 1.2, 0.8]


def _full(part: SubFigure, run: RunTrace, heights: list[float], theme: Theme, prior: Prior | None, more: str) -> list:
    sheet, size, table = Sheet(part, theme, heights), RC["font"], Grid.of(run)
    sheet.part.set_facecolor(theme.paper)
    sheet.heading(run.policy, about(run) + more, figures(run))
    schedule = sheet.panel(1, "Schedule")
    panels.strip(schedule, run, theme, size)
    panels.key(schedule, panels.present([run]), theme, size - 2)
    errors = sheet.panel(2, panels.ERRORS if len(table.sites) > 1 else "Error of reuse", "relative L2")
    panels.errors(errors, run, theme, size, prior)
    maps = panels.maps(sheet, 3, table, table.errors, theme, log_norm(table.errors), "relative L2 error")
    if not maps:
        note(sheet.panel(3), theme, "no branch was looked at in this run")
    time = sheet.panel(len(heights) - 2, "Time per evaluation")
    panels.seconds(time, run, theme, size)
    memory = sheet.panel(len(heights) - 1, "Memory held by the cache" + STORED[run.store])
    panels.held(memory, [run], theme, size)
    panels.below([schedule, errors, *maps, time, memory], panels.noise(run), theme, size)
    return [(axes, table, rows) for axes, rows in zip(maps, table.by_branch().values(), strict=True)]


STORED = {"device": "", "cpu": ", in main memory", "8 bit": ", in 8 bits"}


def _cells(table: Grid, theme: Theme, dotted: bool) -> list:
    """What the cells of the maps mean that hold no colour of the scale."""
    known, found = np.isfinite(table.errors), []
    for kind in KINDS[1:]:
        at = table.kinds == kind
        if dotted and (at & known).any():
            found.append(Line2D([], [], ls="", marker="o", color=theme.kinds[kind], label=f"{kind}, true error"))
        if (at & ~known).any():
            found.append(Patch(facecolor=theme.tint(kind), label=f"{kind}, error unknown"))
    if ((table.kinds == "computed") & ~known).any():
        found.append(Patch(facecolor=theme.empty, label="computed, error unknown"))
    return found


def _dotted(figure: Figure, maps: list[list], theme: Theme) -> None:
    """Settle the layout, once, then put dots where they fit into the cells, and say what the cells mean."""
    if any(np.isfinite(table.true).any() for own in maps for _, table, _ in own):
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
    for own in filter(None, maps):
        dotted = [panels.dots(axes, table, rows, theme) for axes, table, rows in own]
        axes, table, _ = own[0]
        cells = _cells(table, theme, any(dotted))
        rows = 1 + (len(cells) > MOST_WORDS)
        legend(axes, theme, cells, RC["font"] - 1 - rows, rows)
        if cells:
            axes.get_legend().set_in_layout(False)  # so many words would push all panels aside


def glance(runs: Sequence[RunTrace], otherwise: str = WAITING, theme: Theme = LIGHT) -> Figure:
    """What matters, readable in a node 400 pixels wide: figures, schedule, errors, time."""
    if not runs:
        return empty(otherwise, theme, GLANCE, GLANCE_DPI)
    shown = list(runs[-MOST_AT_A_GLANCE:])
    rows = [0.92, 0.3, 1.35, 0.85]
    tall = sum(rows) + 0.3 * len(rows) + 0.35
    figure = new_figure(GLANCE, tall * len(shown), theme, GLANCE_DPI)
    parts = np.atleast_1d(figure.subfigures(len(shown), 1))
    for part, run in zip(parts, shown, strict=True):
        part.set_facecolor(theme.paper)
        sheet, size = Sheet(part, theme, rows, size=10.5, beside=False), 10.5
        more = "" if len(shown) == len(runs) else f" (run {runs.index(run) + 1} of {len(runs)})"
        sheet.heading(run.policy, about(run) + more, figures(run), 3)
        schedule, errors, time = (sheet.panel(i, t) for i, t in enumerate(("Schedule", "Error of reuse", "Time"), 1))
        panels.strip(schedule, run, theme, size)
        panels.key(schedule, panels.present([run]), theme, size - 1.5)
        panels.errors(errors, run, theme, size)
        panels.seconds(time, run, theme, size)
        panels.below([schedule, errors, time], "evaluation, from noise to picture", theme, size)
    return figure


def about(run: RunTrace) -> str:
    parts = [run.about]
    if run.measure == "truth":
        parts.append("all computed in shadow")
    if not run.complete:
        parts.append("stopped early")
    return ";  ".join(parts)


def figures(run: RunTrace) -> list[tuple[str, str]]:
    """The figures of a run, each with its caption: speed, work saved, error, memory, time."""
    table = Grid.of(run)
    found = [] if run.speedup is None or run.computed_fraction == 1 else [(f"{run.speedup:.2f}x", "speed")]
    found.append((f"{1 - run.computed_fraction:.0%}", "not computed"))
    measured = [(name, e) for name, e in (("true", table.true), ("estimated", table.estimated)) if np.isfinite(e).any()]
    of = "branch " if any(site not in (MODEL, STACK) for site in table.sites) else ""  # not of the picture
    found += [(f"{np.nanmean(e):.3f}", f"{name} {of}error") for name, e in measured[:1]]
    return [*found, (human_bytes(run.peak_bytes), "cache"), (f"{run.seconds:.2f} s", "in the model")]
