"""ERNIE-Image."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def ernie_image(
    words: int = 5, stretched: bool = False, dtype: torch.dtype = torch.float32, **changes
) -> tuple[nn.Module, Callable]:
    """Two heads of 32; stretched: positions as the host's node for larger pictures sets them."""
    import comfy.ops

    model = pytest.importorskip("comfy.ldm.ernie.model", reason="newer than this host")
    settings = {
        "hidden_size": 64, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 96, "in_channels": 4,
        "out_channels": 4, "text_in_dim": 24, "rope_axes_dim": (8, 12, 12),
    }  # fmt: skip
    network = opened(model.ErnieImageModel(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))
    width = (settings | changes)["text_in_dim"]
    places = {"rope_options": {"scale_x": 0.5, "scale_y": 0.75, "shift_t": 1.0, "shift_x": 2.0, "shift_y": 3.0}}

    def inputs(step: int) -> dict:
        return {
            "x": torch.randn(2, 4, 8, 6, generator=generator(step)).to(dtype),
            "timesteps": torch.tensor([900.0, 700.0]) - 100 * step,
            "context": torch.randn(2, words, width, generator=generator(99)).to(dtype),
            "transformer_options": places if stretched else {},
        }

    return network, inputs


CASES = {
    "ernie image": ernie_image,
    "ernie image one word": lambda: ernie_image(words=1),
    "ernie image patches of four, text as wide as the blocks": lambda: ernie_image(patch_size=2, text_in_dim=64),
    "ernie image positions stretched": lambda: ernie_image(stretched=True, words=7),
    "ernie image bfloat16": lambda: ernie_image(dtype=torch.bfloat16),
}
