"""How far two batches are apart."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..errors import SettingError
from .pictures import as_image
from .types import CATEGORY

NOTHING = "Compare: nothing to compare; connect images_a and images_b, or latent_a and latent_b."


class PriorCacheCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheCompare",
            display_name="Compare",
            category=CATEGORY,
            description="How far cached pictures are from the uncached ones: PSNR, SSIM and relative L2 per picture, and a picture of the difference.",
            search_aliases=["psnr", "ssim", "difference", "image metrics"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images_a", optional=True, tooltip="The pictures to judge, such as the cached ones."),
                io.Image.Input("images_b", optional=True, tooltip="Their references, such as the uncached ones."),
                io.Latent.Input(
                    "latent_a", optional=True, tooltip="The latent to judge, beside or in place of pictures."
                ),
                io.Latent.Input("latent_b", optional=True, tooltip="Its reference."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Pictures, references, and where they differ."),
                io.String.Output(display_name="summary", tooltip="One line per picture."),
                io.Float.Output(
                    display_name="error", tooltip="Mean relative L2: of latents where given, else of pictures."
                ),
            ],
        )

    @classmethod
    def execute(cls, images_a=None, images_b=None, latent_a=None, latent_b=None) -> io.NodeOutput:
        from ..plots import compare

        for name, (a, b) in {"images": (images_a, images_b), "latent": (latent_a, latent_b)}.items():
            if (a is None) != (b is None):
                missing, given = (f"{name}_{side}" for side in ("ba" if b is None else "ab"))
                raise SettingError(
                    f"Compare: {missing} is missing; connect it, or take {given} off: pairs are compared."
                )
        if images_a is None and latent_a is None:
            raise SettingError(NOTHING)
        parts, picture, error = [], torch.ones(1, 64, 64, 3), 0.0
        if images_a is not None:
            a, b = compare.checked(images_a, images_b, "images")
            found = compare.of_pictures(a, b)
            picture = as_image(compare.draw(a, b, found))
            parts.append("Pictures\n" + compare.table(found))
            error = sum(d.relative for d in found) / len(found)
        if latent_a is not None:
            found = compare.of_latents(*compare.checked(latent_a["samples"], latent_b["samples"], "latent"))
            parts.append("Latents\n" + compare.table(found))
            error = sum(d.relative for d in found) / len(found)
        text = "\n\n".join(parts)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() if images_a is not None else {}
        return io.NodeOutput(picture, text, error, ui={**shown, "text": (text,)})
