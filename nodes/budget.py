"""A policy within a limit of memory."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.adapters import adapter_for, sites_of
from ..cache_core.codecs import CODECS
from ..cache_core.policies import Budget, CachePolicy
from ..priors.prior import Prior
from ..priors.reuse import errors
from .calibrate import subject
from .memory import supposed, usual
from .types import POLICIES, Policy, PriorTable


class PriorCacheMemoryBudget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheMemoryBudget",
            display_name="Memory Budget",
            category=POLICIES,
            description="Keeps the cache within so much memory: the branches that save most computing per byte stay cached, the others are computed.",
            search_aliases=["memory limit", "vram", "cache size", "out of memory"],
            inputs=[
                Policy.Input(
                    "policy", tooltip="Any policy that reuses branches, with its corrections. This node comes last."
                ),
                io.Model.Input("model", tooltip="The model that will be sampled."),
                io.Int.Input(
                    "megabytes",
                    default=1024,
                    min=1,
                    max=1_000_000,
                    tooltip="What the cache may hold at most while sampling, in MiB. With store = 8 bit in Apply Cache about twice as much fits into it.",
                ),
                PriorTable.Input(
                    "prior",
                    optional=True,
                    tooltip="From Calibrate or Load Prior: branches whose reuse costs little come first. Without it, all count alike.",
                ),
            ],
            outputs=[
                Policy.Output(display_name="policy", tooltip="For Apply Cache."),
                io.String.Output(display_name="about", tooltip="What fits, for usual sizes."),
            ],
        )

    @classmethod
    def execute(cls, policy: CachePolicy, model, megabytes: int, prior: Prior | None = None) -> io.NodeOutput:
        if policy.level != "branch" or not policy.history:
            return io.NodeOutput(
                policy, f"{policy.describe()} keeps no branches: it is handed on as it is, without a budget."
            )
        network = model.model.diffusion_model
        if prior is not None:
            prior.matches(subject(model))
        known = () if prior is None else errors(prior, policy, sites_of(network))
        budget = Budget(policy, float(megabytes), known)
        return io.NodeOutput(budget, told(model, budget))


def told(model, budget: Budget) -> str:
    """What will be kept at usual sizes, as it lies on the device; one line for each."""
    sizes = usual(model) if adapter_for(model.model.diffusion_model) is not None else {}
    lines = []
    for name, parts in sizes.items():
        schedule = supposed(model, budget, parts, CODECS["device"])
        choice = budget.remark(schedule) or f"{budget.prepared(schedule).objection(schedule)}."
        lines.append(f"{name}, a positive and a negative prompt: {choice}")
    return "\n".join(lines) or f"What {budget.describe()} keeps is told in the log when sampling begins."
