"""Ideogram 4."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def ideogram4(
    words: int = 5, masked: bool = False, dtype: torch.dtype = torch.float32, **changes
) -> tuple[nn.Module, Callable]:
    """Two heads of 32; no words: the picture alone, as the host calls it without a prompt."""
    import comfy.ops

    model = pytest.importorskip("comfy.ldm.ideogram4.model", reason="newer than this host")
    settings = {
        "in_channels": 16, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 96,
        "adaln_dim": 16, "llm_features_dim": 24, "mrope_section": (6, 5, 5),
    }  # fmt: skip
    network = opened(
        model.Ideogram4Transformer2DModel(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init)
    )

    def inputs(step: int) -> dict:
        given = {
            "x": torch.randn(2, 16, 4, 3, generator=generator(step)).to(dtype),
            "timesteps": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "transformer_options": {},
        }
        if words:
            given["context"] = torch.randn(2, words, 24, generator=generator(99)).to(dtype)
        if masked:
            given["attention_mask"] = (torch.arange(words) < torch.tensor([[words - 3], [words]])).long()
        return given

    return network, inputs


CASES = {
    "ideogram 4": ideogram4,
    "ideogram 4 one word": lambda: ideogram4(words=1),
    "ideogram 4 masked text": lambda: ideogram4(words=7, masked=True),
    "ideogram 4 without text": lambda: ideogram4(words=0),
    "ideogram 4 bfloat16": lambda: ideogram4(dtype=torch.bfloat16, words=6, masked=True),
}
