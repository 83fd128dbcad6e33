"""Policies that compute some tokens anew: ToCa, and DuCa, which skips all blocks in between."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.policies import DuCa, ToCa
from ..cache_core.policies.toca import AUTO, SELECTIONS
from .types import POLICIES, Policy

MODES = {"corrected": False, "as published": True}


def _inputs(policy: type[ToCa]) -> list[io.Input]:
    return [
        io.Combo.Input(
            "preset",
            options=[AUTO, *policy.presets],
            default=AUTO,
            tooltip="The authors' constants for one model: schedule, shares per step and layer, which branches. auto: those for the model that is most alike yours; the log and Inspect say which.",
        ),
        io.Int.Input(
            "interval",
            default=0,
            min=0,
            max=50,
            tooltip="N: about every N-th step is computed in full; the preset makes it longer or shorter along the way. 0: as the preset says.",
        ),
        io.Float.Input(
            "ratio",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            tooltip="Share of tokens that a step in between computes anew, before the preset's factors per step, layer and branch. More is truer and slower. -1: as the preset says.",
        ),
        io.Combo.Input(
            "selection",
            options=list(SELECTIONS),
            default="random",
            tooltip="Which tokens. random: any, the same for positive and negative. small values, large values: by the length of their value vectors. attention: those that others look at; entropy: those that look at many words; both need attention maps in full steps. What a model does not tell is replaced by random.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="corrected",
            advanced=True,
            tooltip="corrected: one decision per step. as published: as the authors' DiT code runs, where in some steps only the first block is computed in full; to repeat their operation counts.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [Policy.Output(display_name="policy", tooltip="For Apply Cache.")]


class PriorCacheToCa(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheToCa",
            display_name="ToCa Policy",
            category=POLICIES,
            description="Between full steps, reuse attention and compute the MLP of some tokens anew (ToCa, arXiv 2410.05317).",
            search_aliases=["toca", "token-wise caching", "cache policy"],
            inputs=_inputs(ToCa),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, preset: str, interval: int, ratio: float, selection: str, mode: str) -> io.NodeOutput:
        return io.NodeOutput(ToCa(preset, interval, ratio, selection, MODES[mode]))


class PriorCacheDuCa(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheDuCa",
            display_name="DuCa Policy",
            category=POLICIES,
            description="Alternate steps that skip all blocks with steps that compute some tokens anew (DuCa, arXiv 2412.18911).",
            search_aliases=["duca", "dual feature caching", "cache policy"],
            inputs=_inputs(DuCa),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, preset: str, interval: int, ratio: float, selection: str, mode: str) -> io.NodeOutput:
        return io.NodeOutput(DuCa(preset, interval, ratio, selection, MODES[mode]))
