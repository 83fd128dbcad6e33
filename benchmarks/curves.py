"""What `bench frontier` measured, as a picture: docs/frontier.png."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..plots.style import LIGHT, WIDTH, dressed, grid, log_scale, new_figure
from .standings import DEFAULT, PLAN, Setting, pictured

LOOKS = {
    "fewer steps, euler": ("#8A929B", "-", "s"), "fewer steps, dpmpp_2m": ("#8A929B", "--", "s"),
    "reuse": ("#E69F00", "-", "v"), "linear in sigma": ("#56B4E9", "-", "<"), "Taylor 1": ("#009E73", "--", "^"),
    "Taylor 2": ("#009E73", "-", "^"), "Taylor 2, Spectrum's steps": ("#009E73", ":", "d"), "Spectrum": ("#CC79A7", "-", "D"),
    "Spectrum, at the output": ("#CC79A7", "--", "D"), "Spectrum, ComfyUI node": ("#CC79A7", ":", "D"), "EasyCache": ("#A6761D", "-", "P"),
    "LazyCache": ("#D55E00", "-", "X"), DEFAULT: ("#0072B2", "-", "o"), PLAN: ("#1B1F24", "-", "*"),
}  # fmt: skip
"""Method -> colour, line, marker."""
WORST = 1.0
"""Errors above it are left out: nothing is left of the picture there."""


def draw(settings: list[Setting]) -> Figure:
    """Error against wall time, both as a share of the uncached run's. Down and to the left is better."""
    settings = pictured(settings)
    columns = min(len(settings), 3)
    rows = -(-len(settings) // columns)
    figure = new_figure(WIDTH, 3.3 * rows + 0.7)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    order = sorted(settings, key=lambda s: s.about["sampler"], reverse=True)  # a row per sampler
    for at, setting in zip(axes.flat, order, strict=False):
        _panel(at, setting)
    for at in axes.flat[len(settings) :]:
        at.axis("off")
    log_scale(axes.flat[0])
    for at in axes[:, 0]:
        at.set_ylabel("relative L2 error of the final latent", fontsize=9.5, color=LIGHT.soft)
    for at in axes[-1]:
        at.set_xlabel("wall time, share of all steps'", fontsize=9.5, color=LIGHT.soft)
    lines = {line.get_label(): line for at in axes.flat for line in at.get_lines()}
    handles = [lines[name] for name in LOOKS if name in lines]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9.5, labelcolor=LIGHT.ink
    )
    return figure


def _panel(axes, setting: Setting) -> None:
    dressed(axes, LIGHT, setting.title)
    grid(axes, LIGHT, "both")
    for method, (colour, line, marker) in LOOKS.items():
        points = [point for count in setting.counts if (point := setting.point(method, count)) is not None]
        points = [point for point in points if point.error <= WORST]
        if points:
            ours = method in (DEFAULT, PLAN)
            axes.plot(
                [setting.time(p) for p in points], [p.error for p in points], color=colour, ls=line, marker=marker,
                lw=2.0 if ours else 1.1, ms=8 if method == PLAN else 5.5, mec=LIGHT.paper, mew=0.6, label=method,
                zorder=4 if ours else 3,
            )  # fmt: skip
