"""Pictures and sentences about priors."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..cache_core.trace import human_bytes
from ..priors.prior import Prior
from .style import COLOURS, HEAT, RC, heat_map, log_norm, new_figure, statistics_over_sites, step_axis


def draw(prior: Prior) -> Figure:
    """Error of reuse per step, step x branch map at the shortest distance, likeness of the outputs of any two steps."""
    grams = [n for n in ("gram/positive", "gram/negative") if n in prior.tables]
    figure = new_figure(10.5, 10.5)
    figure.suptitle(title(prior), fontsize=RC["title"], x=0.02, ha="left", linespacing=1.5)
    layout = figure.subplot_mosaic([["curve"] * 2, ["map"] * 2, ["gram0", "gram1"]], height_ratios=(0.9, 1.2, 1.1))
    _curve(layout["curve"], prior)
    if prior.sites:
        errors = prior.reuse_error(1).T.numpy()
        image = heat_map(layout["map"], errors, list(prior.sites), log_norm(errors))
        figure.colorbar(image, ax=layout["map"], label="relative L2 error", pad=0.01)
    layout["map"].set_title("Error of reusing the evaluation before, by branch", loc="left", fontsize=RC["font"])
    for i, axes in enumerate((layout["gram0"], layout["gram1"])):
        if i < len(grams):
            _likeness(figure, axes, prior, grams[i])
        else:
            axes.axis("off")
    return figure


def title(prior: Prior) -> str:
    s = prior.subject
    what = f"Prior of {s.architecture} ({s.prediction}): {s.sampler}, {s.scheduler}, {s.steps} steps, cfg {s.cfg:g}"
    return f"{what}\n{prior.samples} pictures, {len(prior.sites)} branches, {human_bytes(prior.nbytes)}"


def _curve(axes, prior: Prior) -> None:
    styles = ("-", "--", "-.", ":")
    axes.set_title("Error of reuse per step, by distance", loc="left", fontsize=RC["font"])
    axes.set_ylabel("relative L2 error")
    step_axis(axes, prior.evaluations)
    if not prior.sites:
        axes.text(
            0.5,
            0.5,
            "no adapter for this architecture: only whole-network tables",
            transform=axes.transAxes,
            ha="center",
        )
        return
    for gap in range(1, len(prior.tables["difference"]) + 1):
        mean, worst = statistics_over_sites(prior.reuse_error(gap).T.numpy())
        steps, style = np.arange(len(mean)), styles[(gap - 1) % len(styles)]
        axes.plot(steps, mean, color=COLOURS["compute"], ls=style, lw=1.8, label=f"mean, {gap} back")
        axes.plot(steps, worst, color=COLOURS["worst"], ls=style, lw=1.1, label=f"worst, {gap} back")
    if (prior.reuse_error(1) > 0).any():
        axes.set_yscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=9, ncols=4, loc="upper center")


def _likeness(figure: Figure, axes, prior: Prior, name: str) -> None:
    gram = prior.tables[name].numpy()
    norm = np.sqrt(np.clip(np.diag(gram), 1e-30, None))
    distance = np.clip(1 - gram / np.outer(norm, norm), 1e-6, None)
    image = axes.imshow(distance, cmap=HEAT, norm=log_norm(distance + np.where(np.eye(len(gram)), np.nan, 0)))
    axes.set_title(f"1 - cosine of outputs, {name.removeprefix('gram/')}", loc="left", fontsize=RC["font"])
    for axis, label in ((axes.xaxis, "evaluation"), (axes.yaxis, "evaluation")):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axis.set_label_text(label)
    figure.colorbar(image, ax=axes, pad=0.02)


def summary(prior: Prior) -> str:
    """What the prior says, in sentences."""
    said = [title(prior).replace("\n", "; ") + "."]
    if prior.sites and prior.evaluations > 1:
        errors = prior.reuse_error(1).numpy()
        if not np.isfinite(errors).any():
            return " ".join(said)
        mean, _ = statistics_over_sites(errors.T)
        calm, wild = int(np.nanargmin(mean)), int(np.nanargmax(mean))
        t, s = np.unravel_index(np.nanargmax(errors), errors.shape)
        said.append(
            f"Reusing the step before costs {np.nanmean(errors):.3f} on average, least at step {calm} ({mean[calm]:.3f}), most at step {wild} ({mean[wild]:.3f})."
        )
        said.append(f"The branch that moves most is {prior.sites[s]}, step {t} ({errors[t, s]:.3f}).")
    return " ".join(said)
