"""Policies that correct what another policy reuses: policy in, policy out."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.policies import EOC, GOC, CachePolicy, Taylor
from ..cache_core.policies.goc import PUBLISHED_INFLECTIONS, PUBLISHED_STEPS, QUEUES
from ..errors import SettingError, finite
from ..priors.inflections import inflections as found_in
from ..priors.prior import Prior
from ..priors.trend import Trend, judged
from .types import POLICIES, Policy, PriorTable

INFLECTIONS = ("none", "published", "from prior")


def _base() -> io.Input:
    return Policy.Input("policy", tooltip="The policy that decides what is reused, such as FORA Policy.")


class PriorCacheGOC(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheGOC",
            display_name="GOC Policy",
            category=POLICIES,
            description="Corrects reused features along the way they last moved (GOC, arXiv 2503.05156).",
            search_aliases=["goc", "gradient optimized cache", "cache correction"],
            inputs=[
                _base(),
                io.Float.Input(
                    "eta",
                    default=0.8,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How far to go on: 0 is plain reuse. With queue = used, 0.8 suits every second step reused; where more in a row are reused (FORA 75 %), 0.25, or queue = recomputed with 0.5. The authors: 1.2 over FORA, 0.8 over L2C.",
                ),
                io.Combo.Input(
                    "queue",
                    options=list(QUEUES),
                    default="used",
                    tooltip="What the last movement is taken from. used: what each block used, corrected outputs too, as the authors' code does. recomputed: computed outputs only, steadier; with every second step reused, eta = 0.5 is a straight line.",
                ),
                io.Combo.Input(
                    "inflections",
                    options=list(INFLECTIONS),
                    default="none",
                    tooltip="Steps at which nothing is corrected because the features turn. none: correct at every reused step. published: leave out step 17, the authors' constant for DiT-XL/2 at 20 DDIM steps. from prior: as a calibration found.",
                ),
                io.Boolean.Input(
                    "whole_blocks",
                    default=True,
                    advanced=True,
                    tooltip="On: correct a branch only where its whole block is reused, as the authors' L2C code does. Off: correct every reused branch. The same over FORA.",
                ),
                PriorTable.Input(
                    "prior", optional=True, tooltip="For inflections = from prior: from Calibrate or Load Prior."
                ),
            ],
            outputs=[Policy.Output(display_name="policy", tooltip="For Apply Cache.")],
        )

    @classmethod
    def execute(
        cls,
        policy: CachePolicy,
        eta: float,
        queue: str,
        inflections: str,
        whole_blocks: bool,
        prior: Prior | None = None,
    ) -> io.NodeOutput:
        left_out: tuple[tuple[int, ...], int] = ((), 0)
        if inflections == "published":
            left_out = PUBLISHED_INFLECTIONS, PUBLISHED_STEPS
        elif inflections == "from prior":
            if prior is None:
                raise SettingError("GOC Policy: inflections = 'from prior' needs one; connect Calibrate or Load Prior.")
            about = prior.subject
            if prior.evaluations != about.total:
                raise SettingError(
                    f"GOC Policy: the prior's sampler {about.sampler} calls the model {prior.evaluations} times in {about.total} steps, so "
                    "that its inflections are no steps; calibrate with one such as euler, or set inflections to 'none'."
                )
            left_out = found_in(prior), about.total
        return io.NodeOutput(GOC(policy, eta, queue, *left_out, joint=whole_blocks))


class PriorCacheEOC(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheEOC",
            display_name="EOC Policy",
            category=POLICIES,
            description="Corrects reused features by how they move on average, as a calibration measured (EOC, arXiv 2501.19243).",
            search_aliases=["eoc", "error optimized cache", "cache correction"],
            inputs=[
                _base(),
                PriorTable.Input(
                    "prior", tooltip="From Calibrate or Load Prior, measured with mean_features switched on."
                ),
                io.Float.Input(
                    "theta",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="How strongly the mean movement is applied: 0 is plain reuse. 0.01 is the authors' value.",
                ),
                io.Float.Input(
                    "least_error",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Correct only at steps where reusing the step before costs at least this on average, as the prior measured. 0: at every reused step, as the authors' code does.",
                ),
            ],
            outputs=[Policy.Output(display_name="policy", tooltip="For Apply Cache.")],
        )

    @classmethod
    def execute(cls, policy: CachePolicy, prior: Prior, theta: float, least_error: float) -> io.NodeOutput:
        finite("EOC Policy", theta=theta, least_error=least_error)
        steps = judged(prior, least_error) if least_error > 0 else None
        return io.NodeOutput(EOC(policy, Trend(prior), theta, steps))


class PriorCacheTaylor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheTaylor",
            display_name="Taylor Policy",
            category=POLICIES,
            description="Continues computed features along a line or a curve instead of repeating them (TaylorSeer, arXiv 2503.06923).",
            search_aliases=["taylorseer", "taylor", "forecast", "extrapolate"],
            inputs=[
                _base(),
                io.Int.Input(
                    "order",
                    default=1,
                    min=1,
                    max=2,
                    tooltip="1: a line through the last two computed features. 2: a curve through three, which takes half as much memory again.",
                ),
                io.Boolean.Input(
                    "exact",
                    default=False,
                    tooltip="For order 2. On: the parabola through the last three computed features. Off: TaylorSeer's own formula, which bends less.",
                ),
            ],
            outputs=[Policy.Output(display_name="policy", tooltip="For Apply Cache.")],
        )

    @classmethod
    def execute(cls, policy: CachePolicy, order: int, exact: bool) -> io.NodeOutput:
        return io.NodeOutput(Taylor(policy, order, exact))
