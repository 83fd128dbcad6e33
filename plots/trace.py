"""Pictures and sentences about sampling runs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..cache_core.trace import RunTrace, human_bytes
from .style import COLOURS, RC, heat_map, log_norm, new_figure, statistics_over_sites, step_axis

MOST_RUNS = 12
WAITING = "No sampling run yet: queue the workflow with a sampler behind Apply Cache."


def draw(runs: list[RunTrace], otherwise: str = WAITING) -> Figure:
    """One row of panels per run: error per step, step x branch map, time and memory per step."""
    runs, left_out = runs[-MOST_RUNS:], len(runs[:-MOST_RUNS])
    figure = new_figure(10.5, 9.5 * len(runs) or 2)
    if not runs:
        figure.text(0.5, 0.5, otherwise, ha="center", va="center", fontsize=RC["font"], wrap=True)
        return figure
    more = f"\n(the last {len(runs)} runs; {left_out} earlier ones are not drawn)" if left_out else ""
    for part, run in zip(np.atleast_1d(figure.subfigures(len(runs), 1)), runs, strict=True):
        part.suptitle(title(run) + more, fontsize=RC["title"], x=0.02, ha="left", linespacing=1.5)
        errors_axes, map_axes, time_axes = part.subplots(3, 1, sharex=True, height_ratios=(1, 1.5, 0.8))
        _errors(errors_axes, run)
        _map(part, map_axes, run)
        _time(time_axes, run)
    return figure


def title(run: RunTrace) -> str:
    first = f"{run.policy}   |   {run.about}" + ("" if run.complete else "   |   stopped early")
    parts = [f"{run.computed_fraction:.0%} of branches computed", f"{run.seconds:.2f} s in the model"]
    if run.measure == "truth":
        parts.append("reused branches computed in shadow")
    if run.speedup is not None:
        parts.append(f"{run.speedup:.2f}x against its own full steps")
    parts.append(f"cache {human_bytes(run.peak_bytes)}")
    return first + "\n" + ",  ".join(parts)


def _expected(run: RunTrace) -> str:
    return "" if run.expected_bytes is None else f" ({human_bytes(run.expected_bytes)} expected)"


def kinds(run: RunTrace) -> list[str]:
    """What each evaluation was as a whole: compute, reuse or mixed."""
    done: dict[int, set[str]] = {}
    for row in run.decisions:
        done.setdefault(row.step, set()).add(row.action.value)
    whole = [{"compute"}, {"reuse"}]
    found = [done.get(m.step.index, {"compute"}) for m in run.moments]
    return [next(iter(actions)) if actions in whole else "mixed" for actions in found]


def _shade(axes, run: RunTrace) -> None:
    for moment, kind in zip(run.moments, kinds(run), strict=True):
        if kind != "compute":
            axes.axvspan(moment.step.index - 0.5, moment.step.index + 0.5, color=COLOURS[kind], alpha=0.13, lw=0)


def _errors(axes, run: RunTrace) -> None:
    _, _, errors = run.table()
    errors = np.array(errors, dtype=float)
    mean, worst = statistics_over_sites(errors) if errors.size else (np.array([]), np.array([]))
    steps = np.arange(len(mean))
    known = np.isfinite(mean) & (mean > 0)
    _shade(axes, run)
    step_axis(axes, run.evaluations)
    axes.set_ylabel("relative L2 error")
    axes.set_title("Error per step, over branches", loc="left", fontsize=RC["font"])
    if not known.any():
        text = "errors were not measured (Apply Cache: measure = errors or truth)"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#555555")
        axes.set_yticks([])
        return
    axes.set_yscale("log")
    axes.plot(
        steps[known], worst[known], color=COLOURS["worst"], lw=1.2, ls="--", marker="^", ms=4, label="worst branch"
    )
    axes.plot(steps[known], mean[known], color=COLOURS["compute"], lw=1.8, marker="o", ms=4, label="mean")
    reused = np.array([k == "reuse" for k in kinds(run)] + [False] * (len(steps) - run.evaluations), dtype=bool)
    paid = known & reused[: len(steps)]
    if paid.any():
        axes.plot(steps[paid], mean[paid], "o", color=COLOURS["reuse"], ms=6, label="paid: this step reused")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=9, ncols=3, loc="best", framealpha=0.9)


def _map(part, axes, run: RunTrace) -> None:
    sites, actions, errors = run.table()
    axes.set_title("What was computed and what was reused", loc="left", fontsize=RC["font"])
    if not sites:
        axes.text(
            0.5, 0.5, "no branch was looked at in this run", transform=axes.transAxes, ha="center", color="#555555"
        )
        axes.set_yticks([])
        return
    errors = np.array(errors, dtype=float)
    norm = log_norm(errors)
    image = heat_map(axes, errors, [s.name for s in sites], norm)
    handles = []
    for action, label in (("reuse", "reused"), ("partial", "some tokens computed")):
        lines = [np.array(line) == action for line in actions]
        measured = any(np.isfinite(errors[i][line]).any() for i, line in enumerate(lines))
        if action == "reuse" or any(line.any() for line in lines):
            handles.append(_patch(action, measured, label + (", true error" if measured else "")))
        for i, line in enumerate(actions):
            for begin, end in _stretches(line, action):
                known = bool(np.isfinite(errors[i, begin:end]).all())
                look = {"lw": 0, "edgecolor": COLOURS[action], "hatch": "///" if known else None}
                face = "none" if known else COLOURS[action]
                axes.add_patch(Rectangle((begin - 0.5, i - 0.5), end - begin, 1, facecolor=face, **look))
    first = Patch(facecolor="#EEEEEE", edgecolor="#BBBBBB", label="error unknown")
    axes.legend(
        handles=[*handles, first],
        fontsize=9,
        ncols=len(handles) + 1,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
        borderaxespad=0.1,
    )
    if norm is not None:
        part.colorbar(image, ax=axes, label="relative L2 error", pad=0.01, aspect=18)


def _patch(action: str, measured: bool, label: str) -> Patch:
    if measured:
        return Patch(facecolor="#6BAED6", edgecolor=COLOURS[action], hatch="///", label=label)
    return Patch(facecolor=COLOURS[action], label=label)


def _stretches(line: list[str], action: str) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.array(line) == action, [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _time(axes, run: RunTrace) -> None:
    index = [m.step.index for m in run.moments]
    of_kind = kinds(run)
    axes.bar(index, [m.seconds * 1000 for m in run.moments], color=[COLOURS[k] for k in of_kind], width=0.85)
    axes.set_ylabel("ms per step")
    axes.set_xlabel("evaluation of the model, from noise to picture")
    step_axis(axes, run.evaluations)
    heading = f"Time per step, and memory held by the cache{_expected(run)}"
    axes.set_title(heading, loc="left", fontsize=RC["font"])
    names = {"compute": "all computed", "mixed": "mixed", "reuse": "all reused"}
    handles = [Patch(color=COLOURS[k], label=names[k]) for k in names if k in of_kind]
    memory = axes.twinx()
    memory.plot(index, [m.nbytes / 2**20 for m in run.moments], color=COLOURS["bytes"], lw=1.2, ls=":")
    memory.set_ylabel("cache, MiB (dotted)")
    memory.set_ylim(bottom=0, top=max(1e-3, run.peak_bytes / 2**20 * 1.6))
    axes.legend(handles=handles, fontsize=9, ncols=3, loc="upper right", framealpha=0.9)


def _speed(run: RunTrace) -> str:
    if run.measure == "truth":
        return ", shadow computing included"
    if run.speedup is None:
        return ", with no full step to compare with"
    if run.speedup >= 1:
        return f", {run.speedup:.2f}x faster than all of its steps in full"
    return f", {1 / run.speedup:.2f}x slower than its own full steps suggest"


def summary(run: RunTrace) -> str:
    """What happened, in sentences."""
    steps = run.evaluations
    skipped = steps - len(run.full_steps())
    said = [
        f"{run.policy}, {run.about}: {skipped} of {steps} evaluations skipped work, {run.computed_fraction:.1%} of all branches were computed."
    ]
    said.append(f"It took {run.seconds:.2f} s in the model{_speed(run)}.")
    _, actions, errors = run.table()
    grid = np.array(errors, dtype=float)
    if np.isfinite(grid).any():
        mean, worst = np.nanmean(grid), np.nanmax(grid)
        i, j = np.unravel_index(np.nanargmax(grid), grid.shape)
        meaning = "reuse did cost" if actions[i][j] in ("reuse", "partial") else "reuse would have cost"
        said.append(
            f"Relative error per branch: mean {mean:.3f}, worst {worst:.3f} at {run.sites[i].name}, step {j} ({meaning})."
        )
    where = {"device": "", "cpu": " of main memory", "8 bit": " in 8 bits"}[run.store]
    said.append(f"The cache held {human_bytes(run.peak_bytes)}{where} at most{_expected(run)}.")
    if not run.complete:
        said.append("The run was stopped before its end.")
    return " ".join(said + run.notes)
