"""Draw what happened."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..priors.router import TABLE
from .types import CATEGORY, PriorTable, TraceHandle

NOTHING = "No cache is attached: Apply Cache is bypassed, or no trace and no prior is connected to Inspect."


class PriorCacheInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheInspect",
            display_name="Inspect",
            category=CATEGORY,
            description="Draws the error per step, what was computed and what was reused, and where the time went; or what a prior says.",
            search_aliases=["cache error", "error curve", "trace", "cache statistics"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                TraceHandle.Input("trace", optional=True, tooltip="From Apply Cache."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The sampled latent: makes Inspect wait for the sampler, and shows the runs that led to this latent.",
                ),
                PriorTable.Input("prior", optional=True, tooltip="From Calibrate or Load Prior."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="One picture per trace or prior."),
                io.String.Output(display_name="summary", tooltip="The same in sentences."),
            ],
        )

    @classmethod
    def execute(cls, trace=None, latent=None, prior=None) -> io.NodeOutput:
        from ..plots import prior as prior_plot
        from ..plots import router as router_plot
        from ..plots import trace as trace_plot
        from ..plots.style import pixels

        pictures, sentences, tables = [], [], []
        if trace is not None:
            runs = trace.of_nodes(_upstream(cls.hidden.prompt, cls.hidden.unique_id, "latent"))
            pictures.append(pixels(trace_plot.draw(runs)))
            tables += [run.as_dict() for run in runs]
            sentences += [trace_plot.summary(run) for run in runs] or ["No sampling run yet."]
        elif prior is None:
            pictures.append(pixels(trace_plot.draw([], NOTHING)))
            sentences.append(NOTHING)
        if prior is not None:
            learned = TABLE in prior.tables
            if not learned or prior.tables["power"].isfinite().any():  # a published router was never calibrated
                pictures.append(pixels(prior_plot.draw(prior)))
                sentences.append(prior_plot.summary(prior))
            if learned:
                pictures.append(pixels(router_plot.draw(prior)))
                sentences.append(router_plot.summary(prior))
        image, text = _batch(pictures), "\n\n".join(sentences)
        return io.NodeOutput(
            image, text, ui={**ui.PreviewImage(image, cls=cls).as_dict(), "text": (text,), "priorcache": tables}
        )


def _upstream(prompt: dict | None, node: str | None, entry: str) -> set[str]:
    """Ids of all nodes that an input depends on, from the queued prompt."""
    seen: set[str] = set()
    link = ((prompt or {}).get(str(node)) or {}).get("inputs", {}).get(entry)
    waiting = [link[0]] if isinstance(link, list) and link else []
    while waiting:
        name = str(waiting.pop())
        if name not in seen and name in prompt:
            seen.add(name)
            waiting += [v[0] for v in prompt[name].get("inputs", {}).values() if isinstance(v, list) and len(v) == 2]
    return seen


def _batch(pictures: list[np.ndarray]) -> torch.Tensor:
    """IMAGE (B, H, W, 3); smaller ones are padded with white."""
    height, width = (max(p.shape[i] for p in pictures) for i in (0, 1))
    padded = [
        np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)), constant_values=1) for p in pictures
    ]
    return torch.from_numpy(np.stack(padded))
