"""Sample the same pictures under several policies: what each costs and what it saves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.utils
import numpy as np
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io, ui

from ..cache_core.policies import CachePolicy, Forecast, Full
from ..cache_core.trace import RunTrace, Trace
from ..errors import SettingError, shown
from ..priors.parts import as_one, parts
from .attach import attach
from .calibrate import subject
from .pictures import as_image
from .sampling import Sampling, given, seeded, seeds_from, settings
from .types import CATEGORY, Policy

MOST = 20
"""Policies that one node takes."""
WARM_UP = 2
"""Steps that are sampled first and not counted: loading, and what a device does once."""


class PriorCacheSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        policies = io.Autogrow.TemplatePrefix(
            Policy.Input(
                "policy", optional=True, tooltip="A policy to try; connect it, and there is room for another."
            ),
            prefix="policy",
            min=0,
            max=MOST,
        )
        return io.Schema(
            node_id="PriorCacheSweep",
            display_name="Sweep",
            category=CATEGORY,
            description="Samples the same pictures uncached and with each of several policies or goals, and draws error against time, the pictures side by side, and a table.",
            search_aliases=["xy plot", "compare policies", "benchmark", "speed against quality", "grid"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model as you sample it, without Apply Cache."),
                io.Conditioning.Input("positive", tooltip="The prompts or class labels."),
                io.Conditioning.Input("negative", tooltip="The negative prompt or null class."),
                io.Latent.Input("latent_image", tooltip="The empty latent: its size and batch are used."),
                io.String.Input(
                    "goals",
                    default="1.5x, 2x, 3x, 10 steps",
                    tooltip="What to try, with commas, beside the policies that are connected. 2x: Forecast Policy with speed-up 2. 10 steps: no cache, but fewer steps, which every cache should beat.",
                ),
                seeded("Seed of the first run; each further run adds 1. All policies sample the same seeds."),
                io.Int.Input(
                    "runs",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="How often to sample everything, each time with another seed and in another order. Times are medians over runs: 3 or more make them steady.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampler steps, as you generate."),
                *settings(),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Optional: decodes the pictures of the first run for the grid."
                ),
                io.Autogrow.Input(
                    "policies",
                    template=policies,
                    optional=True,
                    tooltip="Policies to try, as many as you like.",
                ),
                given(),
            ],
            outputs=[
                io.Image.Output(display_name="chart", tooltip="Error against time, one point per policy or goal."),
                io.Image.Output(
                    display_name="grid", tooltip="The pictures of the first run, one row per policy or goal."
                ),
                io.String.Output(display_name="table", tooltip="The figures, one line per policy or goal."),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, goals, seed, runs, steps, cfg, sampler_name, scheduler, denoise,
        vae=None, policies: io.Autogrow.Type | None = None, sigmas=None,
    ) -> io.NodeOutput:  # fmt: skip
        from ..plots import sweep as plot

        sampling = Sampling.of(
            model, positive, negative, latent_image, steps, cfg, sampler_name, scheduler, denoise, sigmas=sigmas
        )
        connected = [policy for policy in (policies or {}).values() if policy is not None]
        entries = [Entry("uncached", Full(), sampling), *contenders(connected, goals, sampling)]
        found = swept(model, entries, seeds_from(seed, runs))
        points = [point(entry, own, found[0]) for entry, own in zip(entries, found, strict=True)]
        chart = as_image(plot.draw(points, about(model, sampling, runs)))
        rows = [(p, pictures(vae, own[0].latents)) for p, own in zip(points, found, strict=True)] if vae else []
        grid = as_image(plot.pictures(rows))
        text = plot.table(points)
        return io.NodeOutput(chart, grid, text, ui={**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (text,)})


@dataclass(frozen=True)
class Entry:
    """One way to sample."""

    name: str
    policy: CachePolicy
    sampling: Sampling


@dataclass
class Outcome:
    latents: torch.Tensor | NestedTensor
    run: RunTrace


def contenders(policies: Sequence[CachePolicy], goals: str, sampling: Sampling) -> list[Entry]:
    """The policies, then the goals, as they are written. Raises SettingError where there is none, or one is no goal."""
    found = [Entry(policy.describe(), policy, sampling) for policy in policies]
    for part in filter(None, map(str.strip, re.split(r"[,;\n]", goals))):
        match = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]{1,4})?)\s*(x|steps?|)", part, re.IGNORECASE)
        number, unit = (float(match[1]), match[2].lower()) if match else (0.0, "")
        if unit.startswith("step") and number >= 1 and number == int(number):
            found.append(Entry(f"{number:g} steps", Full(), sampling.of_steps(int(number))))
        elif unit in ("x", "") and 1 <= number <= 20:
            policy = Forecast(number)
            found.append(Entry(policy.describe(), policy, sampling))
        else:
            raise SettingError(
                f"Sweep: {shown(part)} is no goal. Write speed-ups from 1x to 20x, or numbers of steps to sample without a "
                "cache, with commas: '1.5x, 2x, 10 steps'"
            )
    if not found:
        raise SettingError("Sweep: nothing to try; write goals such as '1.5x, 2x', or connect a policy")
    return found


def swept(model, entries: Sequence[Entry], seeds: Sequence[int]) -> list[list[Outcome]]:
    """What every entry gave for every seed. Each seed begins with another entry, so that none always follows the same."""
    traces = [Trace() for _ in entries]
    models = [attach(model, entry.policy, trace) for entry, trace in zip(entries, traces, strict=True)]
    progress = comfy.utils.ProgressBar(WARM_UP + len(seeds) * sum(entry.sampling.steps for entry in entries))
    found: list[list[Outcome]] = [[] for _ in entries]

    def stepped(*_) -> None:
        progress.update(1)

    entries[0].sampling.of_steps(WARM_UP)(models[0], seeds[0], stepped)
    for turn, seed in enumerate(seeds):
        for i in (*range(turn % len(entries), len(entries)), *range(turn % len(entries))):
            latents = entries[i].sampling(models[i], seed, stepped)
            found[i].append(Outcome(latents, traces[i].runs[-1]))
    return found


def point(entry: Entry, found: Sequence[Outcome], uncached: Sequence[Outcome]):
    """The figures of one entry; `uncached` are the outcomes of the first one."""
    from ..plots import sweep as plot
    from ..plots.metrics import relative_l2

    pairs = list(zip(found, uncached, strict=True))
    kind = plot.UNCACHED if found is uncached else plot.STEPS if isinstance(entry.policy, Full) else plot.CACHED
    first, reference = pairs[0]
    return plot.Point(
        entry.name,
        kind,
        first.run.computed_fraction * first.run.evaluations / reference.run.evaluations,
        tuple(own.run.seconds for own in found),
        tuple(other.run.seconds for other in uncached),
        tuple(e for own, other in pairs for e in relative_l2(as_one(own.latents), as_one(other.latents)).tolist()),
        tuple(dict.fromkeys(note for own in found for note in own.run.notes)),
    )


def about(model, sampling: Sampling, runs: int) -> str:
    sampled, count = subject(model, sampling), sampling.rows * runs
    return f"{sampled.architecture}, {sampled.settings}, {count} picture{'s'[: count > 1]}"


def pictures(vae, latents: torch.Tensor | NestedTensor) -> np.ndarray:
    """(B, H, W, 3) in [0, 1]; of a video its middle frame, of several parts the first, as the host's VAE Decode has it."""
    decoded = vae.decode(parts(latents)[0])
    if decoded.ndim == 5:
        decoded = decoded[:, decoded.shape[1] // 2]
    return decoded[..., :3].float().cpu().numpy()
