"""Lens."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def lens(
    words: int = 5,
    masked: bool = False,
    control: bool = False,
    replaced: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32, text of two layers; control: a ControlNet's residuals, of one block for some tokens only."""
    import comfy.ops

    model = pytest.importorskip("comfy.ldm.lens.model", reason="newer than this host")
    settings = {
        "in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 2,
        "enc_hidden_dim": 12, "axes_dims_rope": (8, 12, 12), "selected_layer_index": (0, 1),
    }  # fmt: skip
    network = opened(
        model.LensTransformer2DModel(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init)
    )
    layers = len(network.selected_layer_index) if network.multi_layer_encoder_feature else 1
    itself = {("double_block", 0): lambda args, original: original["original_block"](args)}

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        given = {
            "x": noise(step, 16, 4, 4),
            "timestep": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": noise(99, words, 12 * layers),
            "transformer_options": {"patches_replace": {"dit": itself}} if replaced else {},
        }
        if masked:
            given["attention_mask"] = (torch.arange(words) < torch.tensor([[words - 3], [words]])).long()
        if control:
            given["control"] = {"input": [noise(90, 16, 64)[:1], None, noise(91, 10, 64)[:1]]}
        return given

    return network, inputs


CASES = {
    "lens": lens,
    "lens one word, one layer of text": lambda: lens(words=1, multi_layer_encoder_feature=False),
    "lens masked text, layer norm": lambda: lens(words=7, masked=True, rms_norm=False),
    "lens controlnet": lambda: lens(control=True),
    "lens blocks replaced by themselves": lambda: lens(replaced=True),
    "lens bfloat16": lambda: lens(dtype=torch.bfloat16, masked=True),
}
