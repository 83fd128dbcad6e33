"""Put a policy on a model."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.codecs import CODECS
from ..cache_core.trace import Trace
from .attach import attach
from .memory import memory
from .types import CATEGORY, Policy, TraceHandle

MEASURES = ("errors", "off", "truth")


class PriorCacheApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheApply",
            display_name="Apply Cache",
            category=CATEGORY,
            description="Samples the model with a caching policy. The model that goes in stays as it is; bypass this node to switch caching off.",
            search_aliases=["feature cache", "attach cache", "cache model"],
            inputs=[
                io.Model.Input("model", tooltip="The model to speed up. LoRA nodes may stand before or after."),
                Policy.Input("policy", tooltip="What to compute and what to reuse, from a policy node."),
                io.Combo.Input(
                    "measure",
                    options=list(MEASURES),
                    default="errors",
                    tooltip="errors: where something is computed, also measure what reuse would have cost (takes a little time). off: no measuring, fastest. truth: compute everything in shadow to measure what reuse cost (slow, same picture).",
                ),
                io.Combo.Input(
                    "store",
                    options=list(CODECS),
                    default="device",
                    optional=True,  # workflows saved before it existed do not carry it
                    advanced=True,
                    tooltip="Where kept features lie. device: beside the model, fastest. cpu: in main memory, none of the device's; slower. 8 bit: beside the model in about half the memory of 16 bits; each feature is off by less than 1 %.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, cached."),
                TraceHandle.Output(display_name="trace", tooltip="What happens while sampling: for Inspect."),
                io.String.Output(display_name="memory", tooltip="What the cache will take, for usual sizes."),
            ],
        )

    @classmethod
    def execute(cls, model, policy, measure: str, store: str = "device") -> io.NodeOutput:
        trace = Trace()
        attached = attach(model, policy, trace, measure, store=store)
        return io.NodeOutput(attached, trace, memory(model, policy, measure, store))
