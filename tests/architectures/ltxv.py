"""LTX-Video."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def ltxv(
    words: int = 5,
    masked: bool = False,
    per_token: bool = False,
    guided: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32, two frames of 3 x 4 tokens, of which the second may be a guide that is attended to by half."""
    import comfy.ops
    from comfy.ldm.lightricks.model import LTXVModel

    settings = {
        "in_channels": 8, "cross_attention_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2,
        "caption_channels": 24, "num_layers": 3,
    }  # fmt: skip
    network = opened(LTXVModel(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))

    def inputs(step: int) -> dict:
        timestep = torch.tensor([0.9, 0.7]) - 0.1 * step
        mask = torch.ones(2, words, dtype=torch.long)
        mask[:, : words // 2] = 0
        named = {
            "x": torch.randn(2, 8, 2, 3, 4, generator=generator(step)).to(dtype),
            "timestep": timestep[:, None] * torch.linspace(0.5, 1, 24) if per_token else timestep,
            "context": torch.randn(2, words, 24, generator=generator(99)).to(dtype),
            "attention_mask": mask if masked else None,
            "transformer_options": {},
        }
        if guided:
            hidden = torch.ones(2, 1, 2, 3, 4)
            hidden[:, :, 1, 0] = -1  # these tokens are left out
            named |= {
                "keyframe_idxs": torch.rand(2, 3, 12, 2, generator=generator(98)) * 32,
                "denoise_mask": hidden,
                "guide_attention_entries": [{"pre_filter_count": 12, "strength": 0.5}],
            }
        return named

    return network, inputs


CASES = {
    "ltxv": ltxv,
    "ltxv bfloat16": lambda: ltxv(dtype=torch.bfloat16, masked=True),
    "ltxv masked text": lambda: ltxv(words=6, masked=True),
    "ltxv noise level per token": lambda: ltxv(per_token=True, words=1),
    "ltxv modulated text": lambda: ltxv(cross_attention_adaln=True),
    "ltxv modulated text, noise level per token": lambda: ltxv(cross_attention_adaln=True, per_token=True, masked=True),
    "ltxv guide frame": lambda: ltxv(guided=True, per_token=True, use_middle_indices_grid=True),
    "ltxv split rotation": lambda: ltxv(rope_type="split", causal_temporal_positioning=True),
}
