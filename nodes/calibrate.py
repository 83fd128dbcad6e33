"""Measure how a model's features move from step to step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import comfy.utils
from comfy_api.latest import io, ui

from ..cache_core.adapters import uncompiled, unwrapped
from ..cache_core.policies import Full
from ..errors import SettingError, shown
from ..priors.prior import Prior, Subject
from ..priors.statistics import Statistics
from .attach import attach
from .pictures import as_image
from .sampling import Sampling, given, seeded, seeds_from, settings
from .types import PRIORS, Policy, PriorTable

SCOPES = {"branches": True, "whole network": False}


class PriorCacheCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheCalibrate",
            display_name="Calibrate",
            category=PRIORS,
            description="Samples a few pictures in full and measures how the model's features move from step to step. Use the sampler settings you generate with.",
            search_aliases=["calibration", "prior", "feature statistics"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model as you sample it, without Apply Cache."),
                io.Conditioning.Input("positive", tooltip="A typical prompt or class label."),
                io.Conditioning.Input("negative", tooltip="The negative prompt or null class."),
                io.Latent.Input("latent_image", tooltip="The empty latent: its size and batch are used."),
                seeded("Seed of the first run; each further run adds 1."),
                io.Int.Input(
                    "runs",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="How often to sample, each time with another seed. 1 shows the shape of the curve, 4 to 8 make it steady.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampler steps, as you generate."),
                *settings(),
                io.Int.Input(
                    "longest_gap",
                    default=2,
                    min=1,
                    max=8,
                    advanced=True,
                    tooltip="Longest distance of reuse to measure, in steps. Each one more keeps one more copy of all branch outputs.",
                ),
                io.Boolean.Input(
                    "mean_features",
                    default=False,
                    advanced=True,
                    tooltip="Also keep the mean output of every branch at every step. Needed by corrections that work from a mean; large.",
                ),
                Policy.Input(
                    "policy",
                    optional=True,  # workflows saved before it existed do not carry it
                    tooltip="Optional, for mean_features: keep only what this policy reuses, a half or a quarter of the size. Connect the policy that EOC corrects.",
                ),
                given(),
                io.Combo.Input(
                    "scope",
                    options=list(SCOPES),
                    default="branches",
                    optional=True,
                    advanced=True,
                    tooltip="branches: every attention and MLP, and the network's output. whole network: its output alone, which is all that Search Plans needs; it holds a few latents where branches hold gigabytes.",
                ),
            ],
            outputs=[
                PriorTable.Output(
                    display_name="prior", tooltip="For Save Prior, Search Plans, EOC, GOC, Memory Budget and Inspect."
                ),
                io.Image.Output(display_name="picture", tooltip="The error of reuse, per step and branch."),
                io.String.Output(display_name="summary", tooltip="The same in sentences."),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, seed, runs, steps, cfg, sampler_name, scheduler, denoise,
        longest_gap, mean_features, policy=None, sigmas=None, scope="branches",
    ) -> io.NodeOutput:  # fmt: skip
        from ..plots import prior as plot

        if scope not in SCOPES:
            raise SettingError(f"Calibrate: scope is {shown(scope)}; choose one of {', '.join(SCOPES)}")
        sample = Sampling.of(
            model, positive, negative, latent_image, steps, cfg, sampler_name, scheduler, denoise, sigmas=sigmas
        )
        kept = policy.prepared(sample.schedule(model)) if policy is not None and mean_features else None
        statistics = Statistics(longest_gap, mean_features, kept, SCOPES[scope])
        steps = sample.steps
        progress = comfy.utils.ProgressBar(runs * steps)
        prior = calibrated(
            model, sample, seeds_from(seed, runs), statistics,
            lambda done, step: progress.update_absolute(done * steps + step + 1),
        )  # fmt: skip
        image = as_image(plot.draw(prior))
        small = as_image(plot.glance(prior))  # readable in the node; the output has everything
        return io.NodeOutput(prior, image, plot.summary(prior), ui=ui.PreviewImage(small, cls=cls))


def calibrated(
    model,
    sample: Sampling,
    seeds: tuple[int, ...],
    statistics: Statistics,
    progress: Callable = lambda done, step: None,
) -> Prior:
    """The prior of a MODEL sampled in full with each of these seeds. progress(runs done, step) is called after every step."""
    watched = attach(model, Full(), observers=(statistics,))
    for done, seed in enumerate(seeds):
        sample(watched, seed, lambda step, x0, x, total, done=done: progress(done, step))
        statistics.end_trajectory(sample.rows)
    return statistics.prior(subject(model, sample), sample.shapes[0][1:], seeds, sample.sigmas)


def subject(model, sampling: Sampling | None = None) -> Subject:
    """What a prior of this MODEL belongs to, sampled so. The fingerprint covers names and shapes, so that LoRA and dtype do not matter."""
    network = unwrapped(model.model.diffusion_model)
    with uncompiled(network):  # names as they are without what other nodes compiled
        named = network.named_parameters(remove_duplicate=False)  # a state dict of GGUF tells of packed bytes
        shapes = sorted(f"{k}{tuple(v.shape)}" for k, v in named if k.endswith((".weight", ".bias")))
    geometry = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
    own = (type(network).__name__, geometry, model.model.model_type.name)
    if sampling is None:
        return Subject(*own, sampler="", scheduler="", steps=0, cfg=0.0)
    return Subject(
        *own,
        sampler=sampling.sampler,
        scheduler=sampling.scheduler,
        steps=sampling.steps,
        cfg=float(sampling.cfg),
        denoise=float(sampling.denoise),
        made=sampling.schedule(model).total,
    )
