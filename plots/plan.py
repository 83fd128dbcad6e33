"""Pictures and sentences about plans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator

from ..priors.plan import Plan
from . import panels
from .style import GLANCE, GLANCE_DPI, LIGHT, WIDTH, Sheet, Theme, grid, legend, log_scale, new_figure, step_axis

STEPS = "step, from noise to picture"


def draw(
    plans: Sequence[Plan], chosen: Plan | None = None, errors: Sequence[float] = (), theme: Theme = LIGHT
) -> Figure:
    """Error against speed-up, which steps each plan computes, and the predicted error (T,) of each step of the chosen."""
    plans = sorted(plans, key=lambda p: p.speedup)
    rows = [0.9, 2.4, 0.3 * max(len(plans), 1), *([1.4] if len(errors) else [])]
    figure = new_figure(WIDTH, sum(rows) + 0.45 * len(rows) + 0.4, theme)
    sheet = Sheet(figure, theme, rows, beside=False)
    sheet.heading(*_named(plans, chosen), figures(plans, chosen), 4)
    curve = sheet.panel(1, "Error of the final latent against speed-up", "relative L2", share=False)
    _curve(curve, plans, chosen, theme, sheet.size)
    curve.set_xlabel("speed-up, in evaluations of the model")
    below = [sheet.panel(2, "Steps of every plan")]
    _strips(below[0], plans, chosen, theme, sheet.size)
    if len(errors):
        below.append(sheet.panel(3, "Predicted error of each forecast; computed steps have none", "relative L2"))
        values = np.asarray(errors, dtype=float)
        below[1].bar(np.arange(len(values)), values, color=theme.kinds["forecast"], width=0.9)
        step_axis(below[1], len(values))
        grid(below[1], theme)
    panels.below(below, STEPS, theme, sheet.size)
    return figure


def glance(plans: Sequence[Plan], chosen: Plan | None = None, theme: Theme = LIGHT) -> Figure:
    """The same, readable in a node 400 pixels wide: figures, curve, steps."""
    plans, size = sorted(plans, key=lambda p: p.speedup), 10.5
    rows = [0.92, 1.5, 0.24 * max(len(plans), 1)]
    figure = new_figure(GLANCE, sum(rows) + 0.4 * len(rows) + 0.45, theme, GLANCE_DPI)
    sheet = Sheet(figure, theme, rows, size, beside=False)
    sheet.heading(*_named(plans, chosen), figures(plans, chosen), 3)
    curve, steps = sheet.panel(1, "Error", share=False), sheet.panel(2, "Steps")
    _curve(curve, plans, chosen, theme, size)
    curve.set_xlabel("speed-up, in evaluations")
    _strips(steps, plans, chosen, theme, size)
    panels.below([steps], STEPS, theme, size)
    return figure


def _named(plans: Sequence[Plan], chosen: Plan | None) -> tuple[str, str]:
    if chosen is not None:  # the speed-up is among the figures
        first, _, second = title(plans, chosen).partition("\n")
        return first.rpartition(",")[0], second
    count = f"{len(plans)} plan{'s'[: len(plans) != 1]}"
    return count, f"{', '.join(sorted({p.policy for p in plans}))}; judged on {_judged(plans)} pictures"


def figures(plans: Sequence[Plan], chosen: Plan | None) -> list[tuple[str, str]]:
    """Of the chosen plan; of all of them, the mildest and the fastest."""
    if chosen is not None:
        computed = f"{chosen.evaluations} of {chosen.steps}"
        return [(f"{chosen.speedup:.2f}x", "in evaluations"), (f"{chosen.error:.3f}", "expected error"), (computed, "steps computed"), (f"{chosen.unplanned:.3f}", "evenly spread")]  # fmt: skip
    return [(f"{p.error:.3f}", f"error at {p.speedup:.2f}x") for p in plans]


def _judged(plans: Sequence[Plan]) -> int:
    return max((p.pictures for p in plans), default=0)


def title(plans: Sequence[Plan], chosen: Plan | None) -> str:
    if chosen is None:
        return f"{len(plans)} plan{'s'[: len(plans) != 1]}, judged on {_judged(plans)} pictures"
    return (
        f"{chosen.policy}: {chosen.evaluations} of {chosen.steps} steps computed, {chosen.speedup:.2f}x in evaluations\n"
        f"expected error of the final latent {chosen.error:.3f} (evenly spread steps: {chosen.unplanned:.3f})"
    )


def summary(plans: Sequence[Plan], chosen: Plan | None = None) -> str:
    """What there is, in sentences."""
    if chosen is not None:
        computed = ", ".join(map(str, chosen.computed))
        return f"{title(plans, chosen)}.".replace("\n", "; ") + (f" Computed: {computed}." if computed else "")
    parts = [
        f"{p.evaluations} of {p.steps} steps ({p.speedup:.2f}x): {p.error:.3f}, evenly spread {p.unplanned:.3f}"
        for p in plans
    ]
    told = f"{title(plans, None)}. Relative error of the final latent with " + "; ".join(parts) + "."
    return f"{told} {_advice(plans)}" if plans else told


def _advice(plans: Sequence[Plan]) -> str:
    """Which of them to try, and whether the search found anything."""
    best = min(plans, key=lambda p: p.error / p.unplanned if p.unplanned else 1.0)
    if best.error >= best.unplanned:
        return "No plan is better than evenly spread steps: try more samplings in Search Plans."
    gain = 1 - best.error / best.unplanned
    return f"Try {best.speedup:.2f}x in Plan Policy first: there planning takes {gain:.0%} off the error of evenly spread steps."


def _curve(axes: Axes, plans: Sequence[Plan], chosen: Plan | None, theme: Theme, size: float) -> None:
    speed = [p.speedup for p in plans]
    look = {"lw": size / 6, "ms": size / 2}
    axes.plot(speed, [p.unplanned for p in plans], "--s", color=theme.soft, label="evenly spread", **look)
    axes.plot(speed, [p.error for p in plans], "-o", color=theme.estimated, label="planned", **look)
    if chosen is not None:
        ring = {"ms": size * 1.3, "mfc": "none", "mew": 2, "color": theme.true}
        axes.plot([chosen.speedup], [chosen.error], "o", ls="", label="chosen", **ring)
    if plans and all(min(p.error, p.unplanned) > 0 for p in plans):
        log_scale(axes)
    axes.tick_params(axis="x", length=3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.margins(x=0.04, y=0.12)
    grid(axes, theme, "both")
    handles = axes.get_legend_handles_labels()[0]
    if chosen is not None:
        handles[-1] = Line2D(
            [], [], marker="o", ls="", mfc="none", mew=1.5, ms=size * 0.65, color=theme.true, label="chosen"
        )
    legend(axes, theme, handles, size - 2)


def _strips(axes: Axes, plans: Sequence[Plan], chosen: Plan | None, theme: Theme, size: float) -> None:
    tiles: dict[str, list[Rectangle]] = {"computed": [], "forecast": []}
    for row, plan in enumerate(plans):
        computed = set(plan.computed)
        for step in range(plan.steps):
            tile = Rectangle((step - 0.45, row - 0.4), 0.9, 0.8)
            tiles["computed" if step in computed else "forecast"].append(tile)
        if plan is chosen:
            axes.add_patch(
                Rectangle(
                    (-0.5, row - 0.48), plan.steps, 0.96, fill=False, ec=theme.true, lw=2, clip_on=False, zorder=2
                )
            )
    for kind, own in tiles.items():
        axes.add_collection(PatchCollection(own, facecolor=theme.kinds[kind], lw=0))
    axes.set_yticks(range(len(plans)), [f"{p.speedup:.2f}x" for p in plans], fontsize=size - 2)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(max(len(plans), 1) - 0.45, -0.55)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    step_axis(axes, max((p.steps for p in plans), default=1))
    handles = [Patch(facecolor=theme.kinds[kind], lw=0, label=kind) for kind in tiles]
    legend(axes, theme, handles, size - 2)
