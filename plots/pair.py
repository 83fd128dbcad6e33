"""Two sampling runs side by side, before and after a change, as pictures and sentences."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ..cache_core.trace import RunTrace, human_bytes
from . import panels
from .panels import Grid
from .style import (
    GLANCE,
    GLANCE_DPI,
    LIGHT,
    RC,
    WIDTH,
    Sheet,
    Theme,
    grid,
    legend,
    log_scale,
    new_figure,
    note,
    shortened,
    step_axis,
)  # fmt: skip

WIDEST = 8.0
"""Up to how many times the error the scale of the maps reaches."""
RATIO = "error, after over before"


def draw(before: RunTrace, after: RunTrace, theme: Theme = LIGHT) -> Figure:
    """Both schedules, errors, time and memory, and where the errors changed by which factor."""
    table, ratio = Grid.of(after), _ratio(before, after)
    known = ratio is not None and bool(np.isfinite(ratio).any())
    rows = [0.9, 0.28, 0.28, 1.9, 1.3, 0.9, *(panels.rows_of(table) if known else [])]
    figure = new_figure(WIDTH, sum(rows) + 0.33 * len(rows) + 0.45, theme)
    sheet, size = Sheet(figure, theme, rows), RC["font"]
    sheet.heading("Before and after", _about(before, after), figures(before, after), 4)
    drawn = _common(sheet, before, after, size, panels.ERRORS)
    memory = sheet.panel(5, "Memory held by the cache")
    panels.held(memory, [before, after], theme, size, _colours(theme))
    maps = []
    if known:
        reach = float(np.clip(np.nanmax(np.abs(np.log(ratio))), np.log(1.25), np.log(WIDEST)))
        norm = LogNorm(np.exp(-reach), np.exp(reach))
        changed = Grid(table.sites, np.full(ratio.shape, ""), ratio)
        ticks = (norm.vmin, 1.0, norm.vmax)
        maps = panels.maps(sheet, 6, changed, ratio, theme, norm, RATIO, theme.better, ticks)
        key = [Patch(facecolor=theme.better(x), label=label) for x, label in ((0.1, "less error"), (0.9, "more error"))]
        legend(maps[0], theme, [*key, Patch(facecolor=theme.empty, label="not known in both")], size - 2)
    panels.below([*drawn, memory, *maps], panels.noise(after), theme, size)
    return figure


def glance(before: RunTrace, after: RunTrace, theme: Theme = LIGHT) -> Figure:
    """The same, readable in a node 400 pixels wide: schedules, errors, time."""
    rows, size = [1.16, 0.24, 0.24, 1.3, 0.9], 10.5
    figure = new_figure(GLANCE, sum(rows) + 0.3 * len(rows) + 0.35, theme, GLANCE_DPI)
    sheet = Sheet(figure, theme, rows, size, beside=False)
    sheet.heading("Before and after", _about(before, after), figures(before, after), 3)
    drawn = _common(sheet, before, after, size, "Error of reuse", at=sheet.head)
    panels.below(drawn, "evaluation, from noise to picture", theme, size)
    return figure


def _common(
    sheet: Sheet, before: RunTrace, after: RunTrace, size: float, title: str, at: Axes | None = None
) -> list[Axes]:
    """at: where the key of the schedules goes, where their own titles leave no room for it."""
    theme, runs = sheet.theme, {"before": before, "after": after}
    columns = max(before.evaluations, after.evaluations)
    strips = [
        sheet.panel(i, f"{name.capitalize()}: {shortened(run.policy, 34 if at else 70)}")
        for i, (name, run) in enumerate(runs.items(), 1)
    ]
    for axes, run in zip(strips, runs.values(), strict=True):
        panels.strip(axes, run, theme, size)
    where = {} if at is None else {"loc": "lower left", "bbox_to_anchor": (-0.005, -0.06)}
    panels.key(at or strips[0], panels.present(list(runs.values())), theme, size - 2, **where)
    errors = sheet.panel(3, title, "relative L2")
    handles = []
    for (name, run), colour, mark in zip(runs.items(), _colours(theme), "os", strict=True):
        what, values = _errors(run, _both_true(before, after))
        handles.append(panels.curve(errors, values, theme, f"{name}, {what}", colour, "-", mark, size))
    handles = [handle for handle in handles if handle is not None]
    if handles:
        log_scale(errors)
        grid(errors, theme)
        legend(errors, theme, handles, size - 2)
    else:
        note(errors, theme, "errors were not measured: set measure of Apply Cache", size - 1)
    time = sheet.panel(4, "Time so far", "s")
    for run, colour, (name, dashes) in zip(
        runs.values(), _colours(theme), (("before", "--"), ("after", "-")), strict=True
    ):
        spent = np.cumsum([m.seconds for m in run.moments])
        time.plot([m.step.index for m in run.moments], spent, color=colour, ls=dashes, lw=size / 6, label=name)
    time.set_ylim(bottom=0)
    grid(time, theme)
    legend(time, theme, size=size - 2)
    step_axis(time, columns)
    return [*strips, errors, time]


def _colours(theme: Theme) -> tuple[str, str]:
    return theme.soft, theme.true


def _about(before: RunTrace, after: RunTrace) -> str:
    return after.about if before.about == after.about else f"{before.about}  and  {after.about}"


def _both_true(*runs: RunTrace) -> bool:
    return all(np.isfinite(Grid.of(run).true).any() for run in runs)


def _errors(run: RunTrace, true: bool) -> tuple[str, NDArray]:
    """True errors where both runs have them; else estimates, which every measured run has."""
    table = Grid.of(run)
    return ("true", table.true) if true else ("estimated", table.estimated)


def _ratio(before: RunTrace, after: RunTrace) -> NDArray | None:
    """(S, T) error after over error before, of the sites of `after`; None where the runs are of different lengths.

    Where a cell was computed in one of them and not in the other, one of the errors was never made: unknown.
    """
    here, there = Grid.of(after), Grid.of(before)
    if here.errors.shape[1] != there.errors.shape[1]:
        return None
    row = {site.name: i for i, site in enumerate(there.sites)}
    found = np.full(here.errors.shape, np.nan)
    for i, site in enumerate(here.sites):
        if site.name in row:
            a, b = here.errors[i], there.errors[row[site.name]]
            same = (here.kinds[i] == "computed") == (there.kinds[row[site.name]] == "computed")
            good = same & np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
            found[i, good] = a[good] / b[good]
    return found


def _mean(run: RunTrace, true: bool) -> float | None:
    _, values = _errors(run, true)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def figures(before: RunTrace, after: RunTrace) -> list[tuple[str, str]]:
    """What changed, each (before → after, caption)."""
    true = _both_true(before, after)
    pairs = [
        (f"{before.seconds:.2f} → {after.seconds:.2f} s", "in the model"),
        (f"{1 - before.computed_fraction:.0%} → {1 - after.computed_fraction:.0%}", "not computed"),
    ]
    a, b = _mean(before, true), _mean(after, true)
    if a is not None and b is not None:
        pairs.append((f"{a:.3f} → {b:.3f}", f"{'true' if true else 'estimated'} error"))
    return [*pairs, (f"{human_bytes(before.peak_bytes)} → {human_bytes(after.peak_bytes)}", "cache")]


def summary(before: RunTrace, after: RunTrace) -> str:
    """Three sentences: what changed, what it does to the error, what to try next."""
    if not before.moments or not after.moments:
        return "Of one of the two runs no evaluation is known. Let both run to the end."
    shadow = "truth" in (before.measure, after.measure)
    faster = before.seconds / after.seconds if after.seconds else float("nan")
    speed = f"{faster:.2f}x faster" if faster >= 1 else f"{1 / faster:.2f}x slower"
    speed = "both computing in shadow" if before.measure == after.measure == "truth" else "one of them computing in shadow" if shadow else speed  # fmt: skip
    changed = (
        f"After ({after.policy}) took {after.seconds:.2f} s in the model where before ({before.policy}) took "
        f"{before.seconds:.2f} s, {speed}; it computed "
        f"{after.computed_fraction:.0%} of all there was to compute in place of {before.computed_fraction:.0%}, and held "
        f"{human_bytes(after.peak_bytes)} in place of {human_bytes(before.peak_bytes)}."
    )
    true = _both_true(before, after)
    a, b = _mean(before, true), _mean(after, true)
    if a is None or b is None:
        told = "Their errors cannot be compared, because one of them measured none."
    elif true:
        told = f"The true error of what was not computed went from {a:.3f} to {b:.3f} on average."
    elif before.computed_fraction == 1:
        told = f"Before made no error, and after would have made one of {b:.3f} on average where it computed."
    else:
        told = f"Their errors ({a:.3f} and {b:.3f} on average) are estimates at different steps, which hardly compare."
    return f"{changed} {told} {_advice(a, b, faster, shadow, true)}"


def _advice(a: float | None, b: float | None, faster: float, shadow: bool, true: bool) -> str:
    if a is None or b is None or not true:
        return "Try measure = truth in both Apply Cache nodes for errors that compare, and the node Compare for the pictures."
    if shadow and b < a:
        return "Try both with measure = off to see that the smaller error does not cost time."
    if shadow:
        return "Try both with measure = off to see whether the larger error buys time."
    if faster >= 1 and b <= a:
        return "Keep what came after: it is better in both."
    if faster < 1 and b > a:
        return "Go back to what was before: it is better in both."
    return "Try the node Compare on both pictures, and take the faster one where they are alike."
