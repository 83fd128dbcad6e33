"""The panels of a sampling run, each a function of axes: schedule, errors, maps, time, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from ..cache_core.sites import MODEL, STACK, Site
from ..cache_core.trace import KINDS, RunTrace, human_bytes
from ..priors.plan import step_errors_of
from ..priors.prior import Prior
from ..priors.record import restored
from .style import Sheet, Theme, grid, legend, log_scale, note, statistics_over_sites, step_axis

NAMES = {
    STACK.name: "All blocks", MODEL.name: "Whole network", "attn": "Attention", "attn2": "Second attention",
    "cross_attn": "Cross-attention", "audio_attn": "Audio attention", "mlp": "MLP", "img_mlp": "Image MLP",
    "txt_mlp": "Text MLP", "txt_attn": "Text attention", "single": "Single-stream blocks",
    "audio_cross_attn": "Audio cross-attention", "audio_mlp": "Audio MLP",
    "audio_to_video_attn": "Audio-to-video attention", "video_to_audio_attn": "Video-to-audio attention",
}  # fmt: skip
"""How a kind of branch is called over its map."""
ERRORS = "Error of reuse: mean over branches, shaded up to the worst"
ROW = 0.17
"""Height in inches of one block in a map, where there is room."""
SMALLEST_DOT = 2.5
MANY = 120
"""Evaluations from which bars stand without gaps."""


@dataclass(frozen=True)
class Grid:
    """A run as arrays: sites (S), kinds (S, T) of KINDS or "", errors (S, T), nan where unknown."""

    sites: tuple[Site, ...]
    kinds: NDArray[np.str_]
    errors: NDArray[np.float64]

    @staticmethod
    def of(run: RunTrace) -> Grid:
        sites, kinds, errors = run.kinds()
        columns = len(kinds[0]) if sites else run.evaluations
        shape = (len(sites), columns)
        return Grid(
            tuple(sites), np.array(kinds, dtype="U9").reshape(shape), np.array(errors, dtype=float).reshape(shape)
        )

    @property
    def estimated(self) -> NDArray[np.float64]:
        """What reuse would have cost where all was computed."""
        return np.where(self.kinds == "computed", self.errors, np.nan)

    @property
    def near(self) -> NDArray[np.float64]:
        """The same, from the step before anything is reused to the one behind: elsewhere it says nothing of this run."""
        skipped = np.flatnonzero(~np.isin(self.kinds, ("computed", "")).all(0))
        columns = slice(max(skipped[0] - 1, 0), skipped[-1] + 2) if len(skipped) else slice(None)
        found = np.full(self.errors.shape, np.nan)
        found[:, columns] = self.estimated[:, columns]
        return found

    @property
    def true(self) -> NDArray[np.float64]:
        """What it cost, where that was measured."""
        return np.where(self.kinds == "computed", np.nan, self.errors)

    def by_branch(self) -> dict[str, list[int]]:
        """Rows of every kind of branch, in the order of blocks."""
        found: dict[str, list[int]] = {}
        for i, site in enumerate(self.sites):
            found.setdefault(site.branch, []).append(i)
        return {branch: sorted(rows, key=lambda i: self.sites[i].block) for branch, rows in found.items()}

    @staticmethod
    def of_names(names: Sequence[str], values: NDArray) -> Grid:
        """Values (S, T) of branches by name, in execution order; what became of them is not known."""
        blocks = {block: i for i, block in enumerate(dict.fromkeys(name.rpartition(".")[0] for name in names))}
        sites = tuple(Site(name, blocks[name.rpartition(".")[0]], len(blocks)) for name in names)
        return Grid(sites, np.full(values.shape, "", dtype="U9"), values)

    def by_block(self) -> NDArray[np.float64]:
        """(B, T) means over the branches of every block."""
        blocks = sorted({site.block for site in self.sites})
        rows = [[i for i, site in enumerate(self.sites) if site.block == block] for block in blocks]
        return np.array([statistics_over_sites(self.errors[part])[0] for part in rows])

    def expected(self, prior: Prior, record: dict | None = None) -> NDArray[np.float64] | None:
        """(S, T) what a prior expects of reuse at the distances of this run, and of a Forecast by its record; None where
        it is of other evaluations.
        """
        if self.sites == (MODEL,):
            return self._forecast(prior, record)
        if prior.evaluations != self.errors.shape[1] or not {s.name for s in self.sites} & set(prior.sites):
            return None
        tables = [prior.reuse_error(gap + 1).numpy() for gap in range(len(prior.tables["difference"]))]
        found = np.full(self.errors.shape, np.nan)
        for i, site in enumerate(self.sites):
            computed = None
            for t, kind in enumerate(self.kinds[i]):
                gap = 0 if computed is None else t - computed
                if kind not in ("computed", "") and site.name in prior.sites and 0 < gap <= len(tables):
                    found[i, t] = tables[gap - 1][t, prior.sites.index(site.name)]
                computed = t if kind == "computed" else computed
        return found

    def _forecast(self, prior: Prior, record: dict | None) -> NDArray[np.float64] | None:
        policy = restored(record["policy"], record["settings"]) if record else None
        found = step_errors_of(policy, self.errors.shape[1], prior) if policy else []
        return np.where(self.kinds == "computed", np.nan, np.array([found])) if len(found) else None


def present(runs: Sequence[RunTrace]) -> list[str]:
    """The kinds that occur, computed first."""
    found = {kind for run in runs for shares in run.shares() for kind in shares}
    return [kind for kind in KINDS if kind in found]


def strip(axes: Axes, run: RunTrace, theme: Theme, size: float) -> None:
    """Of every evaluation, how much of it was of which kind."""
    _stacked(axes, run, theme, np.ones(run.evaluations))
    step_axis(axes, run.evaluations)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def key(axes: Axes, kinds: Sequence[str], theme: Theme, size: float, **where) -> None:
    """What the colours of the schedule mean."""
    legend(axes, theme, [Patch(facecolor=theme.kinds[k], lw=0, label=k) for k in kinds], size, **where)


def _stacked(axes: Axes, run: RunTrace, theme: Theme, heights: NDArray) -> None:
    index = [m.step.index for m in run.moments]
    bottom, shares = np.zeros(run.evaluations), run.shares()
    for kind in present([run]):
        part = heights * np.array([share.get(kind, 0.0) for share in shares])
        if run.evaluations < MANY:
            bars = [Rectangle((i - 0.45, low), 0.9, high) for i, low, high in zip(index, bottom, part, strict=True)]
            axes.add_collection(PatchCollection(bars, facecolor=theme.kinds[kind], lw=0))
        else:  # one shape in place of as many
            edges = np.arange(run.evaluations + 1) - 0.5
            axes.stairs(bottom + part, edges, baseline=bottom, fill=True, color=theme.kinds[kind], lw=0)
        bottom = bottom + part


def errors(axes: Axes, run: RunTrace, theme: Theme, size: float, prior: Prior | None = None) -> None:
    """Mean over branches per evaluation, shaded up to the worst one; estimated, true, and as a prior expects them."""
    table = Grid.of(run)
    step_axis(axes, run.evaluations)
    curves = [("estimated", table.estimated, theme.estimated, "-", "o"), ("true", table.true, theme.true, "-", "D")]
    expected = table.expected(prior, run.record) if prior is not None else None
    if expected is not None:
        curves.append(("expected by the prior", expected, theme.soft, ":", "s"))
    handles = [
        handle for name, values, colour, line, mark in curves
        if (handle := curve(axes, values, theme, name, colour, line, mark, size, band=name != "expected by the prior"))
    ]  # fmt: skip
    if not handles:
        note(axes, theme, "errors were not measured: set measure of Apply Cache", size - 1)
        return
    log_scale(axes)
    grid(axes, theme)
    legend(axes, theme, handles, size - 2)


def curve(
    axes: Axes,
    values: NDArray,
    theme: Theme,
    name: str,
    colour: str,
    line: str,
    mark: str,
    size: float,
    band: bool = True,
) -> Line2D | None:
    """One mean (S, T) -> (T,) with its band; None where nothing above zero is known."""
    mean, worst = statistics_over_sites(values) if values.size else (np.array([]), np.array([]))
    known = np.isfinite(mean) & (mean > 0)
    if not known.any():
        return None
    steps = np.flatnonzero(known)
    if band and len(values) > 1:
        axes.fill_between(steps, mean[known], worst[known], color=colour, alpha=0.16, lw=0)
    wide = len(mean) > 60
    (drawn,) = axes.plot(
        steps, mean[known], ls=line, color=colour, lw=size / 6, marker=None if wide and len(steps) > 30 else mark,
        ms=size / 2.6, mfc=theme.paper if mark == "o" else colour, mew=size / 9, label=name,
    )  # fmt: skip
    return drawn


def rows_of(table: Grid) -> list[float]:
    """The height of each kind of branch's map, in inches."""
    wanted = [
        min(max(ROW * len(rows), 0.3 if len(table.sites) > 1 else 0.4), 1.9) for rows in table.by_branch().values()
    ]
    shrink = min(1.0, 5.2 / max(sum(wanted), 1e-9))
    return [max(height * shrink, 0.22) for height in wanted]


def heat(axes: Axes, table: Grid, rows: list[int], theme: Theme, norm, size: float, values: NDArray, cmap=None):
    """Values (S, T) of one kind of branch by block and evaluation; where they are unknown, what was done there."""
    kinds, shown = table.kinds[rows], values[rows]
    columns = shown.shape[1]
    axes.set_facecolor(theme.empty)
    image = axes.imshow(
        np.ma.masked_invalid(shown), aspect="auto", interpolation="nearest", cmap=cmap or theme.heat, norm=norm,
        extent=(-0.5, columns - 0.5, len(rows) - 0.5, -0.5),
    )  # fmt: skip
    unknown = ~np.isfinite(shown)
    for kind in KINDS[1:]:
        tiles = [
            Rectangle((begin - 0.5, i - 0.5), end - begin, 1)
            for i in range(len(rows))
            for begin, end in _stretches((kinds[i] == kind) & unknown[i])
        ]
        axes.add_collection(PatchCollection(tiles, facecolor=theme.tint(kind), lw=0))
    _blocks(axes, [table.sites[i] for i in rows], size)
    step_axis(axes, columns)
    return image


def dots(axes: Axes, table: Grid, rows: list[int], theme: Theme) -> bool:
    """Marks on cells that were not computed and whose error is known, where there is room; the size of the axes is settled.

    Returns whether any was drawn.
    """
    box = axes.get_window_extent()
    across, down = (
        72 / axes.figure.dpi * length for length in (box.width / table.errors.shape[1], box.height / len(rows))
    )
    size = min(0.42 * across, 0.42 * down, 5.0)
    kinds, known = table.kinds[rows], np.isfinite(table.true[rows])
    if size < SMALLEST_DOT or not known.any():
        return False
    for kind in KINDS[1:]:
        y, x = np.nonzero((kinds == kind) & known)
        axes.plot(x, y, "o", ls="", ms=size, color=theme.kinds[kind], mec=theme.paper, mew=0.5)
    return True


def _stretches(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], line, [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _blocks(axes: Axes, sites: Sequence[Site], size: float) -> None:
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if len(sites) == 1:
        axes.set_yticks([])
        return
    every = max(1, -(-len(sites) // 6))
    axes.set_yticks(range(0, len(sites), every), [str(s.block) for s in sites[::every]], fontsize=size - 2.5)


def maps(
    sheet: Sheet,
    row: int,
    table: Grid,
    values: NDArray,
    theme: Theme,
    norm,
    label: str,
    cmap=None,
    ticks: Sequence[float] = (),
) -> list[Axes]:
    """One map per kind of branch from this row on, and their scale beside them. values (S, T) belong to `table`."""
    found, image = [], None
    for branch, rows in table.by_branch().items():
        axes = sheet.panel(row + len(found), NAMES.get(branch, branch), "block" if len(rows) > 1 else "")
        image = heat(axes, table, rows, theme, norm, sheet.size, values, cmap)
        found.append(axes)
    if norm is not None and found:
        sheet.scale(image, label, row, row + len(found) - 1, ticks)
    return found


def seconds(axes: Axes, run: RunTrace, theme: Theme, size: float) -> None:
    """Time of every evaluation, in the colours of the schedule, and what a full one takes; hiccups are cut, and the longest told."""
    taken = np.array([m.seconds for m in run.moments] or [0.0])
    usual = 2 * np.quantile(taken, 0.9)
    top = usual if taken.max() > usual else taken.max() * 1.08
    unit, factor = ("s", 1.0) if top >= 2 else ("ms", 1000.0)
    _stacked(axes, run, theme, taken[: run.evaluations] * factor)
    handles = []
    if len(cut := np.flatnonzero(taken > top)):
        look = {"marker": r"$\uparrow$", "ls": "", "ms": size - 3}
        axes.plot(cut, np.full(len(cut), 0.92 * top * factor), color=theme.paper, **look)
        handles.append(Line2D([], [], color=theme.soft, label=f"up to {taken.max() * factor:.0f} {unit}", **look))
    step_axis(axes, run.evaluations)
    axes.set_ylabel(unit)
    grid(axes, theme)
    axes.set_ylim(0, max(top * factor, 1e-6))
    if run.full_seconds is not None and run.measure != "truth":
        full = run.full_seconds * factor
        handles.append(axes.axhline(full, color=theme.ink, ls="--", lw=1, label=f"a full one: {full:.3g} {unit}"))
    if handles:
        legend(axes, theme, handles, size - 2)


def held(axes: Axes, runs: Sequence[RunTrace], theme: Theme, size: float, colours: Sequence[str] = ()) -> None:
    """Bytes of the cache after every evaluation, beside what was told before sampling."""
    peak = max([run.peak_bytes for run in runs] + [run.expected_bytes or 0 for run in runs])
    unit, factor = next((u, f) for u, f in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if peak >= f or f == 2**10)
    for run, colour in zip(runs, colours or [theme.memory], strict=True):
        index, size_of = [m.step.index for m in run.moments], [m.nbytes / factor for m in run.moments]
        axes.step(index, size_of, where="mid", color=colour, lw=1.5)
        if not colours:
            axes.fill_between(index, size_of, step="mid", color=colour, alpha=0.18, lw=0)
    if len(runs) == 1 and runs[0].expected_bytes is not None:
        line = axes.axhline(runs[0].expected_bytes / factor, color=theme.ink, ls="--", lw=1)
        line.set_label(f"expected: {human_bytes(runs[0].expected_bytes)}")
        legend(axes, theme, [line], size - 2)
    step_axis(axes, max(run.evaluations for run in runs))
    axes.set_ylim(0, max(1e-3, peak / factor * 1.2))
    axes.set_ylabel(unit)
    grid(axes, theme)


def noise(run: RunTrace) -> str:
    """The axis that all panels share."""
    ends = f" (noise {run.moments[0].step.sigma:.3g} to {run.moments[-1].step.sigma:.3g})" if run.moments else ""
    return f"evaluation of the model, from noise to picture{ends}"


def below(axes: Sequence[Axes], label: str, theme: Theme, size: float) -> None:
    """Numbers and name of the shared axis under the last panel only."""
    for upper in axes[:-1]:
        upper.xaxis.set_visible(False)
    axes[-1].set_xlabel(label, fontsize=size - 1.5, color=theme.soft)
