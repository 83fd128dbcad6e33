"""Forecast whole evaluations: by a goal alone, or as a search found it best for one model."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch
from comfy_api.latest import io, ui

from ..cache_core.policies import CachePolicy, Forecast
from ..cache_core.policies.forecast import CORRECTORS
from ..cache_core.sites import Schedule
from ..errors import SettingError, finite, shown
from ..priors.plan import Plan, chosen, forecasts, search_plans, step_errors_of, superseded
from ..priors.prior import GIVEN, Prior, PriorError, Subject
from .attach import named
from .calibrate import subject
from .pictures import as_image
from .sampling import Sampling, seeded
from .searching import Sampler
from .types import POLICIES, PRIORS, Policy, PriorTable

ORDERS = {"auto": 0, "linear": 1, "quadratic": 2}
GOALS = {"speed-up": "speedup", "computed steps": "evaluations", "error": "error"}


def goal(tooltip: str) -> io.Input:
    """How much faster, in the range that a Forecast takes."""
    return io.Float.Input("speedup", default=2.0, min=1.0, max=20.0, step=0.1, round=0.01, tooltip=tooltip)


class PriorCacheForecast(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheForecast",
            display_name="Forecast Policy",
            category=POLICIES,
            description="Computes some steps and extrapolates the model's output in between. Works with every model, and needs no prior.",
            search_aliases=["taylorseer", "spectrum", "extrapolate", "easycache", "speed up"],
            inputs=[
                goal(
                    "The goal: steps over computed steps. 2 computes half of them, 1 all. Time comes close to it where the model is large."
                ),
                io.Combo.Input(
                    "coordinate",
                    options=["auto", "sigma", "log snr", "step"],
                    default="auto",
                    advanced=True,
                    tooltip="Along what to extrapolate. auto: sigma for flow models (Flux, SD3, Wan), the step where their schedule is shifted, or log SNR where the first four steps are all computed; the step for models that predict noise or velocity.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default="auto",
                    advanced=True,
                    tooltip="linear: the line through the last two computed steps. quadratic: the parabola through three. auto: the line where few steps are computed, else half of what the parabola adds to it, or all, as model and sampler suit.",
                ),
                io.Combo.Input(
                    "corrector",
                    options=list(CORRECTORS),
                    default="auto",
                    optional=True,  # prompts of before have none
                    advanced=True,
                    tooltip="Whether a computed step makes good what the forecasts before it were off by, which costs nothing: by a line between computed steps, by a parabola, or not. With euler, ddim and dpmpp_2m. auto: where enough steps are computed (8 at least, and three in ten for models that predict noise or velocity), and for flow models at cfg 1 always.",
                ),
            ],
            outputs=[Policy.Output(display_name="policy", tooltip="For Apply Cache.")],
        )

    @classmethod
    def execute(
        cls, speedup: float, coordinate: str = "auto", order: str = "auto", corrector: str = "auto"
    ) -> io.NodeOutput:
        return io.NodeOutput(Forecast(speedup, coordinate=coordinate, order=ORDERS[order], corrector=corrector))


class PriorCachePlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCachePlan",
            display_name="Plan Policy",
            category=POLICIES,
            description="Takes the best plan for a goal out of a prior that was searched: which steps to compute, and how to forecast the others.",
            search_aliases=["budget", "schedule", "target speed", "quality goal"],
            is_output_node=True,
            inputs=[
                PriorTable.Input("prior", tooltip="From Search Plans, or Load Prior."),
                io.Combo.Input(
                    "goal",
                    options=list(GOALS),
                    default="speed-up",
                    tooltip="What value means. speed-up: steps over computed steps, at least. computed steps: at most so many. error: of the final latent, at most.",
                ),
                io.Float.Input(
                    "value",
                    default=2.0,
                    min=0.001,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="The goal: 2 for twice as fast, 8 for 8 computed steps, 0.05 for an error of 5 %.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Optional: refuse a prior that belongs to another model."
                ),
            ],
            outputs=[
                Policy.Output(display_name="policy", tooltip="For Apply Cache."),
                io.Image.Output(
                    display_name="picture", tooltip="Error against speed-up, computed steps, predicted errors."
                ),
                io.String.Output(display_name="summary", tooltip="The same in sentences."),
            ],
        )

    @classmethod
    def execute(cls, prior: Prior, goal: str, value: float, model=None) -> io.NodeOutput:
        finite("Plan Policy", value=value)
        if model is not None:
            prior.matches(subject(model))
        if not prior.plans:
            raise PriorError("this prior holds no plans: put Search Plans behind Calibrate or Load Prior")
        wanted = round(value) if goal == "computed steps" else value
        if not wanted > 0:
            raise SettingError(
                f"Plan Policy: value is {value:g}, and {goal} = {wanted:g} is no goal; give a larger one"
            )
        plan = chosen(prior.plans, **{GOALS[goal]: wanted})
        policy = policy_of(plan, prior.subject)
        image, small, text = pictured(prior, plan)
        return io.NodeOutput(
            policy,
            image,
            text,
            ui={**ui.PreviewImage(small, cls=cls).as_dict(), "text": (text,)},
        )


def policy_of(plan: Plan, about: Subject) -> CachePolicy:
    """The policy of a plan. Older ones do not say which sampler and guidance they are for; their prior does.

    Raises SettingError on one that does not tell its noise either, and so not which runs it suits.
    """
    policy = plan.restored()
    if isinstance(policy, Forecast) and not policy.sigmas:
        raise SettingError("this plan does not tell the noise that it was searched for; search again with Search Plans")
    if isinstance(policy, Forecast) and not policy.sampler:
        known = about.sampler in comfy.samplers.KSampler.SAMPLERS
        sampler = named(comfy.samplers.sampler_object(about.sampler)) if known else about.sampler
        policy = replace(policy, sampler=sampler, cfg=max(about.cfg, 0.0))
    return policy


class PriorCacheSearch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheSearch",
            display_name="Search Plans",
            category=PRIORS,
            description="Searches, by sampling, which steps of a model to compute for several speed-ups at once. Uses the sampler settings that the prior was calibrated with.",
            search_aliases=["plan", "optimise schedule", "calibrate schedule"],
            is_output_node=True,
            inputs=[
                PriorTable.Input(
                    "prior", tooltip="From Calibrate or Load Prior: says which sampler, steps and cfg to plan for."
                ),
                io.Model.Input("model", tooltip="The model that the prior was made with, without Apply Cache."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Typical prompts or class labels. The more they vary, the better a plan carries over.",
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt or null class."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The empty latent: its batch is how many pictures are judged at once. 8 to 16 are a good number; of 4 not every gain carries over to other pictures.",
                ),
                seeded(
                    "Seed of the pictures that are searched with; the next one (with runs above 1, as many after those) judges what was found. Not ones you generate with.",
                    default=1000,
                ),
                io.Float.Input(
                    "samplings",
                    default=40.0,
                    min=1.0,
                    max=10000.0,
                    step=1.0,
                    tooltip="What the search may cost, in samplings of these pictures in full, for all speed-ups together, beside the two uncached ones that it compares with. Evenly spread steps and Forecast's own are tried in any case. More find a little more. A search that was stopped goes on where it was.",
                ),
                io.String.Input(
                    "speedups", default="2, 2.5, 3.3, 4", tooltip="The speed-ups to plan for, with commas."
                ),
                io.Int.Input(
                    "runs",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,  # prompts of before have none
                    tooltip="How many times to sample the batch for a set of pictures, each with the next seed: for models that fit one picture at a time.",
                ),
            ],
            outputs=[
                PriorTable.Output(display_name="prior", tooltip="With plans: for Plan Policy and Save Prior."),
                io.Image.Output(
                    display_name="picture", tooltip="Error against speed-up, and the computed steps of every plan."
                ),
                io.String.Output(display_name="summary", tooltip="The same in sentences."),
            ],
        )

    @classmethod
    def execute(
        cls, prior: Prior, model, positive, negative, latent_image, seed, samplings, speedups, runs=1
    ) -> io.NodeOutput:  # fmt: skip
        finite("Search Plans", samplings=samplings)
        prior.matches(subject(model))
        about = prior.subject
        available(about)
        sampling = Sampling.of(
            model, positive, negative, latent_image, about.steps, about.cfg, about.sampler, about.scheduler,
            about.denoise,
        )  # fmt: skip
        sampling = sampling.along(prior.schedule) if prior.schedule else sampling
        sample = Sampler(sampling, model, seed, runs)
        plannable(prior, sample.schedule)
        counts = evaluations(speedups, prior.evaluations)  # which says nothing of use where there is nothing to plan
        judging = Sampler(sampling, model, seed + runs, runs)
        judge = judging.search(str(about))
        search = sample.search(str(about), samplings, judge)
        gram = prior.tables.get("gram/positive")
        plans = search_plans(search, forecasts(sample.schedule, gram), counts, samplings, judge)
        prior = prior.planned(superseded(prior.plans, plans))
        image, small, text = pictured(prior)
        sample.finished()
        judging.finished()
        text += (
            f" The search cost {search.spent + judge.spent:.0f} samplings of {len(search.reference)} pictures beside the two "
            f"uncached ones, and tried {len(search.settings)} settings."
        )
        return io.NodeOutput(prior, image, text, ui={**ui.PreviewImage(small, cls=cls).as_dict(), "text": (text,)})


def available(about: Subject) -> None:
    """Raises PriorError where this ComfyUI lacks what a prior was made with; the host would take another scheduler in silence."""
    host = comfy.samplers.KSampler
    for what, name, known in (
        ("sampler", about.sampler, host.SAMPLERS),
        ("scheduler", about.scheduler, (*host.SCHEDULERS, GIVEN)),
    ):
        if name not in known:
            raise PriorError(
                f"the prior was made with the {what} {shown(name)}, which this ComfyUI does not have; install the pack that brings it, "
                "or calibrate anew"
            )


def plannable(prior: Prior, schedule: Schedule) -> None:
    """Raises PriorError where a Forecast has nothing to plan."""
    sampler = prior.subject.sampler
    if schedule.total != prior.evaluations:
        raise PriorError(
            f"the sampler {sampler} evaluates the model {prior.evaluations} times in {schedule.total} steps; "
            "plans are for samplers of one evaluation per step. Calibrate with one such as euler or dpmpp_2m"
        )
    if objection := Forecast().prepared(schedule).objection(schedule):
        raise PriorError(f"nothing to plan: {objection}")


def evaluations(speedups: str, steps: int) -> list[int]:
    """ "2, 2.5" of 20 steps -> [10, 8]. Raises SettingError on what is no speed-up."""
    try:
        values = [float(part) for part in speedups.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or not all(1 < v <= steps / 2 for v in values):
        raise SettingError(
            f"Search Plans: speedups is {shown(speedups)}; give numbers above 1 and up to {steps / 2:g}, which computes two "
            "steps, such as '2, 3, 4'"
        )
    return sorted({max(2, int(steps / v + 1e-6)) for v in values}, reverse=True)


def pictured(prior: Prior, plan: Plan | None = None) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Everything; what reads inside a node; sentences."""
    from ..plots import plan as plot

    errors = step_errors_of(plan.restored(), plan.steps, prior) if plan else ()
    figures = plot.draw(prior.plans, plan, errors), plot.glance(prior.plans, plan)
    full, small = (as_image(figure) for figure in figures)
    made = f" Searched on {prior.subject.architecture} with {prior.subject.settings}." if plan else ""
    return full, small, plot.summary(prior.plans, plan) + made
