"""What the demo models that read prompts need: words without a text encoder, pixels without a VAE file."""

from __future__ import annotations

from comfy_api.latest import io

from ..errors import SettingError
from ..models.words import COLOURS, SHAPES, FoldedPixels, encode
from .types import CATEGORY

MAX_LINES = 4096
DEMO = f"{CATEGORY}/demo"


class PriorCacheDemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheDemoPrompt",
            display_name="Demo Prompt",
            category=DEMO,
            description="Prompts for the demo models that draw coloured shapes. They know a few words and need no text encoder.",
            search_aliases=["demo text encoder", "shapes prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="red star on blue",
                    multiline=True,
                    tooltip=f"One prompt per line, one line per picture of the batch, repeated as needed. An empty prompt leaves all open. Colours: {', '.join(COLOURS)}. Shapes: {', '.join(SHAPES)}.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompts."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The empty prompt, for guidance (cfg above 1)."
                ),
            ],
        )

    @classmethod
    def execute(cls, prompt: str) -> io.NodeOutput:
        lines = prompt.splitlines() or [""]
        if len(lines) > MAX_LINES:
            raise SettingError(f"Demo Prompt: {len(lines)} prompts; at most {MAX_LINES} are drawn at once")
        return io.NodeOutput(conditioning(lines), conditioning([""] * len(lines)))


def conditioning(prompts: list[str]) -> list:
    """CONDITIONING for prompts, one row each."""
    context, pooled = encode(prompts)
    return [[context, {"pooled_output": pooled}]]


class PriorCacheDemoVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheDemoVAE",
            display_name="Demo VAE",
            category=DEMO,
            description="The VAE of the Flux demo model: its latents are pixels, folded into 16 channels. No file is needed.",
            search_aliases=["folded pixels"],
            inputs=[],
            outputs=[io.Vae.Output(tooltip="For VAE Decode and VAE Encode.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(FoldedPixels())
