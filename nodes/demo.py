"""The demo models, and what those that read prompts need: words without a text encoder, pixels without a VAE file."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..errors import SettingError, shown
from ..models.words import COLOURS, SHAPES, FoldedPixels, encode
from .types import DEMO

MAX_LINES = 4096
FOLDER = Path(__file__).resolve().parent.parent / "demo"
MODELS = ("shapes-dit", "shapes-flux", "shapes-pixart")


class PriorCacheDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheDemoModel",
            display_name="Demo Model",
            category=DEMO,
            description="A small model that draws shapes and comes with this pack: no file needs to be copied. Put the loader of your own model in its place.",
            search_aliases=["shapes", "example model", "try"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default=MODELS[0],
                    tooltip="shapes-dit draws by DiT Class Label, 32 x 32 pixels, VAE pixel_space. shapes-flux and shapes-pixart draw by Demo Prompt: 32 x 32 pixels with Demo VAE; 40 x 40 with pixel_space.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The diffusion model.")],
        )

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        import comfy.sd

        from ..models import host, pixart

        if model not in MODELS:
            raise SettingError(f"Demo Model: {shown(model)} is none; choose one of {', '.join(MODELS)}")
        path = FOLDER / f"{model}.safetensors"
        if not path.is_file():
            raise SettingError(f"Demo Model: {path.name} is missing in the pack's demo folder; install the pack again")
        loaders = {"shapes-dit": host.load, "shapes-pixart": pixart.load, "shapes-flux": comfy.sd.load_diffusion_model}
        return io.NodeOutput(loaders[model](str(path)))


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
