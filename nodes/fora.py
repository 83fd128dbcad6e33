"""FORA, from its node."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.policies import FORA
from ..cache_core.policies.fora import PHASES, PRESETS
from ..errors import SettingError, finite
from .types import POLICIES, Policy

SCOPES = {"branches": "branch", "whole network": "model"}


class PriorCacheFORA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheFORA",
            display_name="FORA Policy",
            category=POLICIES,
            description="Compute every N-th step and reuse all attention and MLP outputs in between (arXiv 2407.01425).",
            search_aliases=["fora", "fast forward caching", "cache policy"],
            inputs=[
                io.Int.Input(
                    "interval",
                    default=2,
                    min=1,
                    max=50,
                    tooltip="N: every N-th step is computed. 2 is the mildest, more is faster and rougher, 1 caches nothing.",
                ),
                io.Combo.Input(
                    "phase",
                    options=list(PHASES),
                    default="published",
                    tooltip="published: as the authors' code, counted from the last step, so that the first and the last step are computed. aligned: counted from the first step, as later papers define 50 % (N = 2) and 75 % (N = 4).",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Reuse from this part of sampling on; steps before it are computed.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Reuse until this part of sampling; steps after it are computed. 0.5 protects the details.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(SCOPES),
                    default="branches",
                    tooltip="branches: each attention and MLP output, as the paper does (needs an adapter for the model). whole network: the model's output at once, faster, rougher, and for every model.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="custom",
                    optional=True,  # workflows saved before it existed do not carry it
                    tooltip="Settings by name, in place of interval, phase, start and end, which then do nothing; scope always counts. published: the authors' command, N = 3. 25 %, 50 %, 65 %, 75 %: the shares of reused steps that later papers (EOC, GOC) report. first half: your interval and phase, reusing only in the first half. custom: the widgets.",
                ),
            ],
            outputs=[Policy.Output(display_name="policy", tooltip="For Apply Cache.")],
        )

    @classmethod
    def execute(
        cls, interval: int, phase: str, start: float, end: float, scope: str, preset: str = "custom"
    ) -> io.NodeOutput:
        finite("FORA Policy", start=start, end=end)
        settings = {"interval": interval, "phase": phase, "start": start, "end": end} | PRESETS[preset]
        if settings["start"] > settings["end"]:
            raise SettingError(f"FORA Policy: start ({start:g}) is after end ({end:g}); swap them.")
        return io.NodeOutput(FORA(level=SCOPES[scope], **settings))
