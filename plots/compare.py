"""How far two batches are apart: figures per picture, and a picture of where."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import SettingError
from ..priors.parts import as_one, parts
from .metrics import WINDOW, psnr, relative_l2, ssim
from .style import RC, new_figure

MOST_PICTURES = 8


class Distance(NamedTuple):
    """Of one picture to its reference; PSNR and SSIM are None for latents and where a picture is too small for them."""

    relative: float  # |a - b| / |b|
    psnr: float | None = None  # dB, of floats in [0, 1]; infinite where both are equal
    ssim: float | None = None


def of_pictures(a: Tensor, b: Tensor) -> list[Distance]:
    """Distances of pictures (B, H, W, C) in [0, 1] to their references."""
    a, b = a.movedim(-1, 1), b.movedim(-1, 1)
    similar = ssim(a, b).tolist() if min(a.shape[2:]) >= WINDOW else [None] * len(a)
    return [Distance(*row) for row in zip(relative_l2(a, b).tolist(), psnr(a, b).tolist(), similar, strict=True)]


def of_latents(a: Tensor, b: Tensor) -> list[Distance]:
    """Distances of latents (B, C, ...) to their references."""
    return [Distance(r) for r in relative_l2(a, b).tolist()]


def table(found: list[Distance]) -> str:
    """One line per picture and their mean, as text."""
    lines = [f"{'picture':>8} {'relative L2':>12} {'PSNR':>9} {'SSIM':>7}"]
    lines += [_line(str(i), d) for i, d in enumerate(found)]
    if len(found) > 1:
        lines.append(_line("mean", Distance(*map(_mean, zip(*found, strict=True)))))
    return "\n".join(lines)


def _mean(column: Iterable[float | None]) -> float | None:
    """Of what is known; equal pictures, whose PSNR is infinite, count only where all are equal."""
    known = [value for value in column if value is not None]
    finite = [value for value in known if not math.isinf(value)]
    return statistics.fmean(finite or known) if known else None


def _line(name: str, d: Distance) -> str:
    psnr = "-" if d.psnr is None else "equal" if math.isinf(d.psnr) else f"{d.psnr:.2f} dB"
    return f"{name:>8} {d.relative:12.4f} {psnr:>9} {'-' if d.ssim is None else f'{d.ssim:.3f}':>7}"


def draw(a: Tensor, b: Tensor, found: list[Distance]) -> Figure:
    """Both batches (B, H, W, C) and, below them, how far each pixel is off; the first MOST_PICTURES of them."""
    shown = min(len(a), MOST_PICTURES)
    off = (a[:shown] - b[:shown]).float().abs().mean(-1).numpy()
    figure = new_figure(max(1.7 * shown + 1.4, 6), 6.2)
    more = f" (the first {shown} of {len(a)} pictures)" if shown < len(a) else ""
    figure.suptitle(f"Pictures, reference, and how far they are apart{more}", fontsize=RC["title"], x=0.02, ha="left")
    # a narrow column for the scale: beside one row alone it would push that row out of place
    figure.set_layout_engine("compressed")
    axes, scales = np.split(figure.subplots(3, shown + 1, width_ratios=[1] * shown + [0.06]), [shown], axis=1)
    peak = max(float(off.max(initial=0.0, where=np.isfinite(off))), 1e-6)
    for i in range(shown):
        for row, batch in enumerate((a, b)):
            axes[row, i].imshow(np.clip(batch[i, ..., :3].float().numpy(), 0, 1), interpolation="nearest")
        heat = axes[2, i].imshow(off[i], cmap="magma", vmin=0, vmax=peak, interpolation="nearest")
        psnr = found[i].psnr
        label = "equal" if psnr is None or math.isinf(psnr) else f"{psnr:.1f} dB"
        axes[2, i].set_xlabel(f"{label}\nL2 {found[i].relative:.3f}", fontsize=9)
    for row, name in enumerate(("a", "b (reference)", "|a - b|")):
        axes[row, 0].set_ylabel(name, fontsize=RC["font"])
    for one in axes.flat:
        one.set_xticks([])
        one.set_yticks([])
    for unused in scales[:2, 0]:
        unused.set_axis_off()
    figure.colorbar(heat, cax=scales[2, 0], label="mean over channels")
    return figure


def checked(a: Tensor, b: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Both on the CPU; of several parts, such as video and sound, all in one row. Raises SettingError unless they have one shape."""
    there, here = (", ".join(" x ".join(map(str, part.shape)) for part in parts(x)) for x in (a, b))
    if there != here:
        raise SettingError(
            f"Compare: {what}_a is {there} and {what}_b is {here}; compare batches of one size and number, as from two "
            "samplers with the same empty latent"
        )
    return tuple(as_one(x).detach().to(torch.device("cpu")) for x in (a, b))
