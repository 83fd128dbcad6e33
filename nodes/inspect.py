"""Draw what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..errors import SettingError, excerpt
from ..priors.files import write
from ..priors.router import TABLE
from .graph import sampled
from .types import CATEGORY, PriorTable, TraceHandle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..cache_core.trace import RunTrace, Trace
    from ..plots.style import Theme
    from ..priors.prior import Prior

NOTHING = "No cache is attached: Apply Cache is bypassed, or no trace and no prior is connected to Inspect."
ALONE = "Nothing to compare with yet: connect before_latent, so that Inspect waits for the sampler of the trace before."
PREVIEWS = ("at a glance", "in full")
NO_FILES, ALL_FILES = "nothing", "PNG, CSV and JSON"
FILES = (NO_FILES, "PNG", "CSV", "JSON", ALL_FILES)


class PriorCacheInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheInspect",
            display_name="Inspect",
            category=CATEGORY,
            description="Draws the error per step, what was computed and what was reused, and where the time went; or what a prior says. Compares two runs, and writes files where asked.",
            search_aliases=["cache error", "error curve", "trace", "cache statistics", "compare traces", "export csv"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.dynprompt],
            inputs=[
                TraceHandle.Input("trace", optional=True, tooltip="From Apply Cache or PriorCache (auto)."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The sampled latent: makes Inspect wait for the sampler, and shows the runs that led to this latent.",
                ),
                PriorTable.Input(
                    "prior",
                    optional=True,
                    tooltip="From Calibrate, Search Plans, Train Router, Load Router, Merge Priors or Load Prior.",
                ),
                TraceHandle.Input(
                    "before",
                    optional=True,
                    tooltip="A second trace, to compare the first one with: what was before a change.",
                ),
                io.Latent.Input(
                    "before_latent", optional=True, tooltip="The latent that was sampled with the second trace."
                ),
                io.Combo.Input(
                    "preview",
                    options=list(PREVIEWS),
                    default=PREVIEWS[0],
                    optional=True,
                    tooltip="What this node shows. at a glance: readable at the size of a node. in full: everything, as the output picture has it.",
                ),
                io.Combo.Input(
                    "theme",
                    options=["light", "dark"],
                    default="light",
                    optional=True,
                    tooltip="Dark writing on white, or light writing on dark.",
                ),
                io.Combo.Input(
                    "export",
                    options=list(FILES),
                    default=NO_FILES,
                    optional=True,
                    tooltip="What to write to ComfyUI's output folder at every run. PNG: the pictures in full. CSV: tables. JSON: all of it. nothing: no file.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="PriorCache/inspect",
                    optional=True,
                    tooltip="Folder and name of the files in the output folder; a number is added.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="One picture per trace or prior."),
                io.String.Output(
                    display_name="summary", tooltip="What happened, why, and what to try next, in three sentences."
                ),
                io.Image.Output(display_name="overview", tooltip="The same pictures, small enough for a node."),
            ],
        )

    @classmethod
    def execute(
        cls, trace=None, latent=None, prior=None, before=None, before_latent=None, preview: str = PREVIEWS[0],
        theme: str = "light", export: str = NO_FILES, filename_prefix: str = "PriorCache/inspect",
    ) -> io.NodeOutput:  # fmt: skip
        from ..plots.export import as_json
        from ..plots.style import THEMES, pixels

        look = THEMES[theme]
        runs, earlier = cls._runs(trace, "latent", "trace"), cls._runs(before, "before_latent", "before")
        parts = [] if trace is None else _of_trace(trace, runs, before, earlier, prior, look)
        parts += [] if prior is None else _of_prior(prior, look)
        parts = parts or [_of_nothing(look)]
        text = "\n\n".join(part.text for part in parts)
        if export != NO_FILES:
            wanted = FILES[1:-1] if export == ALL_FILES else (export,)
            document = as_json(text, runs, earlier if trace is not None else (), prior)
            text += (
                "\n\nSaved in the output folder: " + ", ".join(_written(parts, wanted, document, filename_prefix)) + "."
            )
        full, small = (_batch([pixels(draw()) for draw in some], look.paper) for some in zip(*((p.full, p.small) for p in parts), strict=True))  # fmt: skip
        shown = ui.PreviewImage(small if preview == PREVIEWS[0] else full, cls=cls).as_dict()
        tables = [run.as_dict() for run in runs]
        return io.NodeOutput(full, text, small, ui={**shown, "text": (text,), "priorcache": tables})

    @classmethod
    def _runs(cls, trace: Trace | None, latent: str, entry: str) -> list[RunTrace]:
        return [] if trace is None else sampled(trace, cls.hidden, latent, entry)


@dataclass
class Part:
    """One thing that was inspected: figures in full and small, sentences, tables as CSV by name."""

    name: str
    full: Callable[[], Figure]
    small: Callable[[], Figure]
    text: str
    tables: dict[str, Callable[[], str]] = field(default_factory=dict)


def _of_nothing(theme: Theme) -> Part:
    from ..plots import trace as plot

    return Part("nothing", lambda: plot.draw([], NOTHING, theme), lambda: plot.glance([], NOTHING, theme), NOTHING)


def _of_trace(trace, runs, before, earlier, prior, theme: Theme) -> list[Part]:
    from ..plots import pair
    from ..plots import trace as plot

    text = "\n\n".join(plot.summary(run, prior) for run in runs) or plot.WAITING
    tables = _tables(runs) if runs else {}
    own = Part("trace", lambda: plot.draw(runs, theme=theme, prior=prior), lambda: plot.glance(runs, theme=theme), text, tables)  # fmt: skip
    if before is None:
        return [own]
    if not runs or not earlier:
        own.text = f"{own.text}\n\n{ALONE}"
        return [own]
    a, b = earlier[-1], runs[-1]
    return [Part("comparison", lambda: pair.draw(a, b, theme), lambda: pair.glance(a, b, theme), pair.summary(a, b), _tables([a, b])), own]  # fmt: skip


def _tables(runs: list[RunTrace]) -> dict[str, Callable[[], str]]:
    from ..plots import export

    return {"steps": lambda: export.steps_csv(runs), "branches": lambda: export.branches_csv(runs)}


def _of_prior(prior: Prior, theme: Theme) -> list[Part]:
    from ..plots import export
    from ..plots import plan as plan_plot
    from ..plots import prior as prior_plot
    from ..plots import router as router_plot

    parts, learned = [], TABLE in prior.tables
    if not learned or prior.measured:
        parts.append(
            Part(
                "prior",
                lambda: prior_plot.draw(prior, theme),
                lambda: prior_plot.glance(prior, theme),
                prior_plot.summary(prior),
                {"": lambda: export.prior_csv(prior)},
            )
        )
    if learned:
        parts.append(
            Part(
                "router",
                lambda: router_plot.draw(prior, theme=theme),
                lambda: router_plot.glance(prior, theme=theme),
                router_plot.summary(prior),
                {} if parts else {"": lambda: export.prior_csv(prior)},
            )
        )
    if prior.plans:
        parts.append(
            Part(
                "plans",
                lambda: plan_plot.draw(prior.plans, theme=theme),
                lambda: plan_plot.glance(prior.plans, theme=theme),
                plan_plot.summary(prior.plans),
                {"": lambda: export.plans_csv(prior)},
            )
        )
    return parts


def _written(parts: list[Part], wanted: tuple[str, ...], document: str, prefix: str) -> list[str]:
    """Write the files that were asked for, and name them from the output folder on."""
    from ..plots.export import png

    if not prefix.strip():
        raise SettingError("Inspect: filename_prefix is empty; give a name such as PriorCache/inspect")
    files: dict[str, bytes] = {}
    if "PNG" in wanted:
        files |= {f"{part.name}.png": png(part.full()) for part in parts}
    if "CSV" in wanted:
        files |= {
            f"{part.name}{table and '_'}{table}.csv": written().encode()
            for part in parts
            for table, written in part.tables.items()
        }
    if "JSON" in wanted:
        files["all.json"] = document.encode()
    output = folder_paths.get_output_directory()
    try:
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
        named = {f"{name}_{number:05}_{file}": content for file, content in files.items()}
        for file, content in named.items():
            write(Path(folder) / file, content)
    except OSError as error:
        raise SettingError(
            f"Inspect: {output} cannot be written to ({excerpt(error)}); make room, give ComfyUI the right to write there, or set "
            f"export to {NO_FILES!r}"
        ) from error
    return [Path(subfolder, file).as_posix() for file in named]


def _batch(pictures: list[np.ndarray], paper: str = "#FFFFFF") -> torch.Tensor:
    """IMAGE (B, H, W, 3); smaller ones are padded with paper."""
    height, width = (max(p.shape[i] for p in pictures) for i in (0, 1))
    colour = np.array([int(paper[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
    sheets = np.tile(colour, (len(pictures), height, width, 1))
    for sheet, picture in zip(sheets, pictures, strict=True):
        sheet[: picture.shape[0], : picture.shape[1]] = picture
    return torch.from_numpy(sheets)
