"""Learning-to-Cache: read or train a router, and use it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..cache_core.adapters import sites_of, unwrapped
from ..cache_core.policies import FORA, CachePolicy, Full
from ..cache_core.trace import Trace
from ..errors import PriorCacheError, finite, shown
from ..priors import published
from ..priors.parts import as_one
from ..priors.prior import Prior
from ..priors.router import TABLE, Recorder, RouterError, RouterTraining, gated, policy
from ..priors.statistics import Statistics
from .attach import attach
from .calibrate import subject
from .files import located, written
from .pictures import as_image
from .prior import ROUTERS, saved
from .sampling import Sampling, given, seeded, seeds_from, settings
from .types import POLICIES, PRIORS, Policy, PriorTable

log = logging.getLogger(__name__)

UNFINISHED = "unfinished router"
THRESHOLD = "Branches whose gate is at most this are reused. 0.1 is the authors' for DiT, 0.9 theirs for U-ViT; higher is faster and rougher."


class PriorCacheLoadRouter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheLoadRouter",
            display_name="Load Router (L2C)",
            category=PRIORS,
            description="Reads a router as the authors of Learning-to-Cache published them (.pt, .pth) from models/priorcache. Routers trained here are loaded with Load Prior.",
            search_aliases=["l2c", "learning to cache", "ddim20_router"],
            inputs=[
                io.Combo.Input(
                    "router_name",
                    options=folder_paths.get_filename_list(ROUTERS),
                    tooltip="A .pt or .pth file in models/priorcache, such as DDIM20_router.pt.",
                ),
                io.Combo.Input(
                    "rule",
                    options=list(published.RULES),
                    default="auto",
                    tooltip="Which of the file's entries were trained, and for which steps. auto: as the file's layout says.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Optional: the model it is meant for. A router for another number of blocks is then refused.",
                ),
            ],
            outputs=[PriorTable.Output(display_name="prior", tooltip="For L2C Policy, Save Prior and Inspect.")],
        )

    @classmethod
    def execute(cls, router_name: str, rule: str, model=None) -> io.NodeOutput:
        path = located(ROUTERS, router_name)
        if model is None:
            return io.NodeOutput(published.read(path, rule))
        sites = tuple(site.name for site in sites_of(model.model.diffusion_model))
        return io.NodeOutput(published.read(path, rule, subject(model), sites))

    @classmethod
    def fingerprint_inputs(cls, router_name: str, rule: str = "auto", model=None):
        """A file that was written anew is loaded anew."""
        return written(ROUTERS, router_name)


class PriorCacheL2C(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheL2C",
            display_name="L2C Policy",
            category=POLICIES,
            description="Reuse the branches that a learned router found to matter least, at every second step (Learning-to-Cache, arXiv 2406.01733).",
            search_aliases=["l2c", "learning to cache", "router", "cache policy"],
            inputs=[
                PriorTable.Input(
                    "prior", tooltip="A prior with a router: from Train Router, Load Router or Load Prior."
                ),
                io.Float.Input("threshold", default=0.1, min=0.0, max=1.0, step=0.01, tooltip=THRESHOLD),
            ],
            outputs=[Policy.Output(display_name="policy", tooltip="For Apply Cache.")],
        )

    @classmethod
    def execute(cls, prior: Prior, threshold: float) -> io.NodeOutput:
        return io.NodeOutput(policy(prior, threshold))


class PriorCacheTrainRouter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheTrainRouter",
            display_name="Train Router (L2C)",
            category=PRIORS,
            description="Learns which branches can be reused at every second step, on pictures that the model itself samples (Learning-to-Cache, arXiv 2406.01733). The model stays as it is. Use the sampler settings you generate with.",
            search_aliases=["l2c", "learning to cache", "train router"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model as you sample it, without Apply Cache."),
                io.Conditioning.Input("positive", tooltip="Typical prompts or class labels."),
                io.Conditioning.Input("negative", tooltip="The negative prompt or null class."),
                io.Latent.Input("latent_image", tooltip="The empty latent: its size and batch are used."),
                seeded(
                    "Seed of the gates and of the first run; each further run adds 1, and so does the picture that the result is judged on."
                ),
                io.Int.Input(
                    "runs",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="How many sampling runs to train on, each with another seed. More make the router fit more pictures.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=2,
                    max=1000,
                    tooltip="Sampler steps, as you generate. A router serves this number only.",
                ),
                *settings(),
                io.Int.Input(
                    "iterations",
                    default=2000,
                    min=1,
                    max=1000000,
                    tooltip="How long to train, per penalty. Each one trains the gates of one step; at learning rate 0.01 a step needs about 200.",
                ),
                io.String.Input(
                    "penalty",
                    default="5e-6",
                    tooltip="Lambda: what an open gate costs beside the mean square error. Larger reuses more. Several numbers, such as 1e-6, 1e-5, 1e-4, are trained one after another and drawn as a curve; the last one comes out.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.01,
                    min=0.0001,
                    max=1.0,
                    step=0.0001,
                    round=0.0001,
                    tooltip="Of AdamW. The authors' code uses 0.001 with about 20,000 iterations, their text 0.01.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the picture and the summary draw the line between reused and computed; training does not depend on it.",
                ),
                io.Boolean.Input(
                    "save_memory",
                    default=True,
                    advanced=True,
                    tooltip="On: compute each block once more in the backward pass instead of keeping all of it. Off: a third faster, where there is much memory.",
                ),
                PriorTable.Input(
                    "prior",
                    optional=True,
                    tooltip="Optional: a prior made with these settings. A router in it is trained on; otherwise one is added to it.",
                ),
                given(),
            ],
            outputs=[
                PriorTable.Output(display_name="prior", tooltip="For L2C Policy and Save Prior."),
                io.Image.Output(
                    display_name="picture", tooltip="Gates, training, and what each penalty removes and costs."
                ),
                io.String.Output(display_name="summary", tooltip="The same in sentences."),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, seed, runs, steps, cfg, sampler_name, scheduler, denoise,
        iterations, penalty, learning_rate, threshold, save_memory, prior=None, sigmas=None,
    ) -> io.NodeOutput:  # fmt: skip
        from ..plots import router as plot
        from ..plots.metrics import relative_l2

        finite("Train Router", learning_rate=learning_rate, threshold=threshold)
        penalties = parse_penalties(penalty)
        model = _whole(model)
        network = unwrapped(model.model.diffusion_model)
        gated(network)  # says that there is nothing to train before anything is sampled
        sampling = Sampling.of(
            model, positive, negative, latent_image, steps, cfg, sampler_name, scheduler, denoise, sigmas=sigmas
        )
        about, steps = subject(model, sampling), sampling.steps
        if prior is not None:
            prior.matches(about, only=())
            prior.follows(sampling.sigmas)
        rivals = [FORA(2, "aligned", end=0.5), FORA(2, "aligned")] if len(penalties) > 1 else []
        samplings = runs + 1 + len(penalties) + len(rivals)
        progress = comfy.utils.ProgressBar(samplings * steps + len(penalties) * iterations)

        def sample(sampled, own: int) -> torch.Tensor:
            return as_one(sampling(sampled, own, lambda *_: progress.update(1)))

        recorder, statistics = Recorder(network, _attention), Statistics(1)
        watched = attach(model, Full(), observers=(recorder, statistics))
        *seeds, other = seeds_from(seed, runs + 1)
        for own in seeds:
            with recorder.trajectory():
                sample(watched, own)
            statistics.end_trajectory(sampling.rows)
        made = prior or statistics.prior(about, sampling.shapes[0][1:], tuple(seeds), sampling.sigmas)
        reference = sample(model, other)

        def judged(label: str, rival: CachePolicy) -> plot.Point:
            trace = Trace()
            error = relative_l2(sample(attach(model, rival, trace), other), reference).mean().item()
            return plot.Point(label, 1 - trace.runs[-1].computed_fraction, error)

        training = RouterTraining(
            network, made.sites, recorder.trajectories, rate=learning_rate, seed=seed, scores=made.tables.get(TABLE),
            save_memory=save_memory,
        )  # fmt: skip
        points = []
        try:
            for training.penalty in penalties:
                comfy.model_management.load_models_gpu([watched])
                with differentiable():
                    training.run(iterations, lambda done: progress.update(1))
                made = _with_router(made, training)
                points.append(judged(f"{training.penalty:g}", policy(made, threshold)))
            rivals = [judged(rival.describe(), rival) for rival in rivals]
            image = as_image(plot.draw(made, threshold, training.losses, points, rivals))
            small = as_image(plot.glance(made, threshold))  # readable in the node
            return io.NodeOutput(
                made, image, plot.summary(made, threshold, points, rivals), ui=ui.PreviewImage(small, cls=cls)
            )
        except BaseException:  # cancelled, or out of memory: what took hours is worth a file
            if training.losses:
                _keep(_with_router(made, training))
            raise


def _whole(model):
    """The model itself, or a copy that is loaded whole where the host pages its weights in and out.

    Autograd may not keep those that it paged in while sampling.
    """
    if not getattr(model, "is_dynamic", bool)():
        return model
    if model.cached_patcher_init is None:
        raise RouterError(
            "this ComfyUI pages weights in and out (dynamic VRAM), and its loader does not say how to load this model "
            "whole; start ComfyUI with --disable-dynamic-vram to train a router for it"
        )
    return model.clone(disable_dynamic=True)


def _with_router(prior: Prior, training: RouterTraining) -> Prior:
    return replace(prior, tables={**prior.tables, TABLE: training.scores()})


def _keep(prior: Prior) -> None:
    """Under a name of its own: another training may have been stopped before."""
    try:
        path = saved(prior, UNFINISHED)
    except PriorCacheError as error:
        log.warning("PriorCache: training was stopped, and its gates cannot be kept (%s).", error)
        return
    log.warning(
        "PriorCache: training was stopped. Its gates are kept as %s: connect Load Prior to Train Router to go on.",
        path.name,
    )


def _attention(theirs, *args, **kwargs) -> torch.Tensor:
    """Of the host's attentions, the one that has a backward pass everywhere."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


@contextmanager
def differentiable() -> Iterator[None]:
    """The host told to use functions that have a backward pass. Some networks ask for its fused rotations all the same:
    their plain forms, which have one, stand in for them."""
    changed = {(comfy.model_management, "in_training"): True}
    try:
        import comfy_kitchen as fused
        from comfy_kitchen.backends.eager import rope as plain
    except ImportError:  # this host has none
        pass
    else:
        names = [name for name in vars(plain) if "rope" in name and not name.endswith("_") and hasattr(fused, name)]
        changed |= {(fused, name): getattr(plain, name) for name in names}
    before = {place: getattr(*place) for place in changed}
    try:
        for (module, name), value in changed.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def parse_penalties(text: str) -> list[float]:
    """ "1e-6, 1e-5" -> [1e-06, 1e-05]."""
    try:
        found = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(p) and p >= 0 for p in found):
        raise RouterError(
            f"Train Router: penalty {shown(text)} is no list of numbers from 0 up; write 5e-6, or 1e-6, 1e-5, 1e-4"
        )
    return found
