"""JoyAI-Image."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def joyimage(
    words: int = 5,
    frames: int = 1,
    references: int = 0,
    replaced: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32; references stand behind the picture as if they were further frames."""
    import comfy.ops

    model = pytest.importorskip("comfy.ldm.joyimage.model", reason="newer than this host")
    settings = {
        "in_channels": 4, "hidden_size": 64, "num_attention_heads": 2, "text_dim": 24, "num_layers": 3,
        "rope_dim_list": [8, 12, 12],
    }  # fmt: skip
    network = opened(
        model.JoyImageTransformer3DModel(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init)
    )
    first = {("double_block", 0): lambda args, original: original["original_block"](args)}

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        return {
            "hidden_states": noise(step, 4, frames, 8, 6),
            "timestep": torch.tensor([900.0, 700.0]) - 100 * step,
            "context": noise(99, words, 24),
            "ref_latents": [noise(90 + i, 4, 1, 4, 4 + 2 * i) for i in range(references)] or None,
            "transformer_options": {"patches_replace": {"dit": first}} if replaced else {},
        }

    return network, inputs


CASES = {
    "joyimage": joyimage,
    "joyimage bfloat16": lambda: joyimage(dtype=torch.bfloat16),
    "joyimage one word, two references": lambda: joyimage(words=1, references=2),
    "joyimage two frames": lambda: joyimage(frames=2),
    "joyimage a block replaced by itself": lambda: joyimage(replaced=True),
}
