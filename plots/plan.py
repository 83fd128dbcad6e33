"""Pictures and sentences about plans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..priors.plan import Plan
from .style import COLOURS, RC, new_figure, step_axis


def draw(plans: Sequence[Plan], chosen: Plan | None = None, errors: Sequence[float] = ()) -> Figure:
    """Error against speed-up, which steps each plan computes, and the predicted error (T,) of each step of the chosen."""
    plans = sorted(plans, key=lambda p: p.speedup)
    figure = new_figure(10.5, 8.5 if len(errors) else 6)
    heights = (1.3, 0.3 + 0.16 * len(plans), 0.8)
    rows = figure.subplots(3 if len(errors) else 2, 1, height_ratios=heights[: 3 if len(errors) else 2])
    figure.suptitle(title(plans, chosen), fontsize=RC["title"], x=0.02, ha="left", linespacing=1.5)
    _curve(rows[0], plans, chosen)
    _strips(rows[1], plans, chosen)
    if len(errors):
        _errors(rows[2], errors)
    return figure


def title(plans: Sequence[Plan], chosen: Plan | None) -> str:
    if chosen is None:
        return f"{len(plans)} plan{'s'[: len(plans) != 1]}, judged on {max((p.pictures for p in plans), default=0)} pictures"
    return (
        f"{chosen.policy}: {chosen.evaluations} of {chosen.steps} steps computed, {chosen.speedup:.2f}x in evaluations\n"
        f"expected error of the final latent {chosen.error:.3f} (evenly spread steps: {chosen.unplanned:.3f})"
    )


def summary(plans: Sequence[Plan], chosen: Plan | None = None) -> str:
    """What there is, in sentences."""
    if chosen is not None:
        computed = ", ".join(map(str, chosen.settings.get("computed", ())))
        return f"{title(plans, chosen)}.".replace("\n", "; ") + (f" Computed: {computed}." if computed else "")
    parts = [
        f"{p.evaluations} of {p.steps} steps ({p.speedup:.2f}x): {p.error:.3f}, evenly spread {p.unplanned:.3f}"
        for p in plans
    ]
    return f"{title(plans, None)}. Relative error of the final latent with " + "; ".join(parts) + "."


def _curve(axes, plans: list[Plan], chosen: Plan | None) -> None:
    speed = [p.speedup for p in plans]
    axes.plot(speed, [p.unplanned for p in plans], "--s", color=COLOURS["reuse"], ms=5, label="evenly spread steps")
    axes.plot(speed, [p.error for p in plans], "-o", color=COLOURS["compute"], ms=6, label="planned")
    if chosen is not None:
        axes.plot(
            [chosen.speedup], [chosen.error], "o", ms=15, mfc="none", mew=2, color=COLOURS["worst"], label="chosen"
        )
    if all(min(p.error, p.unplanned) > 0 for p in plans):
        axes.set_yscale("log")
    axes.set_title("Error of the final latent against speed-up", loc="left", fontsize=RC["font"])
    axes.set_xlabel("speed-up, in evaluations of the model")
    axes.set_ylabel("relative L2 error")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=9, ncols=3)


def _strips(axes, plans: list[Plan], chosen: Plan | None) -> None:
    steps = max(p.steps for p in plans)
    for row, plan in enumerate(plans):
        computed = set(plan.settings.get("computed", ()))
        for step in range(plan.steps):
            colour = COLOURS["compute"] if step in computed else "#E6E6E6"
            axes.add_patch(Rectangle((step - 0.45, row - 0.36), 0.9, 0.72, color=colour, lw=0))
        if plan is chosen:
            axes.add_patch(
                Rectangle((-0.55, row - 0.46), plan.steps + 0.1, 0.92, fill=False, ec=COLOURS["worst"], lw=2)
            )
    axes.set_yticks(range(len(plans)), [f"{p.speedup:.2f}x" for p in plans], fontsize=9)
    axes.set_ylim(len(plans) - 0.4, -0.6)
    axes.set_title("Computed steps (blue), from noise to picture", loc="left", fontsize=RC["font"])
    step_axis(axes, steps)


def _errors(axes, errors: Sequence[float]) -> None:
    values = np.asarray(errors, dtype=float)
    axes.bar(np.arange(len(values)), values, color=COLOURS["reuse"], width=0.85)
    axes.set_title("Predicted error of each forecast; computed steps have none", loc="left", fontsize=RC["font"])
    axes.set_ylabel("relative L2 error")
    axes.set_xlabel("step")
    step_axis(axes, len(values))
