"""One node that speeds a model up: it is told how much, and says what it chose."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..cache_core.adapters import adapter_for, misfit, unwrapped
from ..cache_core.policies import Forecast
from ..cache_core.policies.forecast import SHORTEST
from ..cache_core.trace import Trace
from ..errors import PriorCacheError
from ..priors.auto import Auto, Shelved, preferred, reaching
from ..priors.prior import MODEL_FIELDS, Prior, Subject
from .attach import attach
from .calibrate import subject
from .forecast import goal, policy_of
from .prior import FOLDER
from .types import CATEGORY, TraceHandle

TABLES = ("sigmas", "power", "difference")
"""What is read of a prior to look for plans: the tables that it cannot be without; mean features take gigabytes."""


class PriorCacheAuto(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheAuto",
            display_name="PriorCache (auto)",
            category=CATEGORY,
            description="Speeds a model up by one number and says what it chose: a plan that was searched for this model, else Forecast, else FORA. The model that goes in stays as it is; bypass this node to switch caching off.",
            search_aliases=[
                "speed up",
                "faster",
                "2x",
                "accelerate",
                "teacache",
                "magcache",
                "wavespeed",
                "first block cache",
                "easycache",
                "one node",
                "automatic",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to speed up. LoRA nodes may stand before or after."),
                goal(
                    "The goal: steps over computed steps. 2 computes half of them, 1 all. At 20 steps or more, 2 changes little with euler, ddim or dpmpp_2m. With fewer steps, a higher goal, or samplers that add noise or call the model several times per step, look at the picture."
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, cached."),
                TraceHandle.Output(
                    display_name="trace", tooltip="What happens while sampling, and what was chosen: for Inspect."
                ),
                io.String.Output(
                    display_name="choice", tooltip="What will be chosen and why, and which priors were looked at."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, speedup: float) -> io.NodeOutput:
        trace = Trace()
        shelf, looked = shelved(subject(model), speedup)
        attached = attach(model, Auto(speedup, tuple(shelf)), trace, "errors")
        if cls.hidden and cls.hidden.unique_id:  # there is none where a script calls
            from server import PromptServer

            PromptServer.instance.send_progress_text(glance(speedup, bool(shelf)), cls.hidden.unique_id)
        return io.NodeOutput(attached, trace, told(model, speedup, shelf, looked))

    @classmethod
    def fingerprint_inputs(cls, model=None, speedup: float = 2.0):
        """Priors that are saved, changed or removed are looked at anew."""
        return [(name, path.stat().st_mtime_ns) for name, path in _files().items()]


def _files() -> dict[str, Path]:
    found = {name: folder_paths.get_full_path(FOLDER, name) for name in folder_paths.get_filename_list(FOLDER)}
    return {name: Path(path) for name, path in found.items() if path}


def shelved(about: Subject, speedup: float) -> tuple[list[Shelved], list[str]]:
    """Plans for this goal in priors of this model; and one sentence for every prior that gives none and should be known of.

    That is one that cannot be read; and, where there is no plan, one that could hold it.
    """
    found, looked, without = [], [], []
    for name, path in _files().items():
        try:
            prior = Prior.load(path, TABLES)
            if prior.subject.differences(about, MODEL_FIELDS):
                continue
            plan = reaching(prior.plans, speedup)
            policy = policy_of(plan, prior.subject) if plan else None
        except PriorCacheError as error:
            looked.append(f"{name} was left out: {error}.")
            continue
        if policy is None and (prior.measured or not prior.sites):  # a router alone holds none, and is not spoken of
            without.append(f"{name} belongs to this model, but {_missing(prior, speedup)}")
        elif policy is not None:
            s = prior.subject
            source = f"{name} ({s.settings}; {plan.pictures} pictures)"
            found.append(Shelved(plan, policy, source))
    return list(preferred(found)), looked if found else looked + without


def _missing(prior: Prior, speedup: float) -> str:
    if not prior.plans:
        return "it holds no plans: put Search Plans behind Load Prior, and Save Prior behind that."
    have = ", ".join(f"{plan.speedup:.2f}x" for plan in prior.plans)
    return f"none of its plans ({have}) is for {speedup:g}x: search for it with Search Plans."


def glance(speedup: float, planned: bool) -> str:
    """The choice in two lines, which is what the node has room for."""
    if speedup == 1.0:
        return "Every step is computed."
    forecast = Forecast(speedup).describe()
    if planned:
        return f"The searched plan where the run is its own;\nelse {forecast}, or FORA."
    return f"{forecast} with euler, ddim or dpmpp_2m;\nFORA with samplers that add noise."


def told(model, speedup: float, shelf: list[Shelved], looked: list[str]) -> str:
    """What will be chosen when sampling begins, as it is known before."""
    network = unwrapped(model.model.diffusion_model)
    name = type(network).__name__
    if speedup == 1.0:
        return f"{name} at 1x: every step is computed."
    lines = [f"{name} at {speedup:g}x: chosen when sampling begins."]
    for shelved in shelf:
        lines.append(f"- A run like that of its prior: the plan of {shelved.describe()}.")
    whole = "the whole network, because " + (misfit(network) or f"there is no adapter for {name}")
    scope = "single branches (the whole network where memory has no room for them)" if adapter_for(network) else whole
    lines += [
        f"- {'Other samplers' if shelf else 'Samplers'} that add no noise and call the model once per step, such as euler or "
        f"dpmpp_2m: {Forecast(speedup).describe()}.",
        f"- Samplers that add noise, such as euler_ancestral: FORA, which reuses {scope}.",
        "- Samplers that call the model several times per step, such as heun: FORA on the whole network.",
        f"- Fewer than {SHORTEST} steps: every step is computed.",
    ]
    if not shelf:
        lines.append(
            "No plan was searched for this model and goal, and none is needed; Calibrate, Search Plans and Save Prior make one "
            "(workflow 10_plan)."
        )
    return "\n".join([*lines, *looked])
