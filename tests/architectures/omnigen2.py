"""OmniGen2, and Boogu-Image, which is made of its blocks and of others with two streams."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def omnigen2(
    kind: str = "omnigen2", words: int = 5, references: int = 0, dtype: torch.dtype = torch.float32, **changes
) -> tuple[nn.Module, Callable]:
    """Two heads of 30, one of keys and values; references are latents that stand before the picture's tokens."""
    import comfy.ops
    from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel

    settings = {
        "in_channels": 4, "hidden_size": 60, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
        "num_kv_heads": 1, "multiple_of": 32, "axes_dim_rope": (10, 10, 10), "timestep_scale": 1000.0,
    }  # fmt: skip
    if kind == "boogu":
        model = pytest.importorskip("comfy.ldm.boogu.model", reason="newer than this host").BooguTransformer2DModel
        settings |= {"instruction_feat_dim": 24, "num_double_stream_layers": 2}
    else:
        model = OmniGen2Transformer2DModel
        settings |= {"text_feat_dim": 24}
    network = opened(model(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        return {
            "x": noise(step, 4, 8, 6),
            "timesteps": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": noise(99, words, 24),
            "num_tokens": words,
            "ref_latents": [noise(90 + i, 4, 4, 4 + 2 * i) for i in range(references)] or None,
            "transformer_options": {},
        }

    return network, inputs


CASES = {
    "omnigen2": omnigen2,
    "omnigen2 bfloat16": lambda: omnigen2(dtype=torch.bfloat16, references=1),
    "omnigen2 one word": lambda: omnigen2(words=1),
    "omnigen2 two references": lambda: omnigen2(references=2),
    "omnigen2 as many keys as queries": lambda: omnigen2(num_kv_heads=2, num_refiner_layers=2),
    "boogu": lambda: omnigen2("boogu"),
    "boogu bfloat16": lambda: omnigen2("boogu", dtype=torch.bfloat16),
    "boogu two references": lambda: omnigen2("boogu", references=2),
    "boogu one word, as many keys as queries": lambda: omnigen2("boogu", words=1, num_kv_heads=2),
}
