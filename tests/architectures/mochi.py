"""Mochi."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def mochi(
    words: int = 5,
    padding: int = 0,
    space: tuple[int, int, int] = (3, 4, 6),
    replaced: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32; the host allows one width of the picture's MLP only. The last block ends the text."""
    import comfy.ops
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

    settings = {
        "in_channels": 4, "hidden_size_x": 64, "hidden_size_y": 48, "depth": 3, "num_heads": 2, "mlp_ratio_x": 192.0,
        "use_t5": True, "t5_feat_dim": 24, "learn_sigma": False, "qk_norm": True, "qkv_bias": False, "out_bias": True,
    }  # fmt: skip
    network = opened(AsymmDiTJoint(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))
    first = {("double_block", 0): lambda args, original: original["original_block"](args)}

    def inputs(step: int) -> dict:
        mask = torch.ones(2, words + padding, dtype=torch.long)
        mask[:, words:] = 0
        return {
            "x": torch.randn(2, 4, *space, generator=generator(step)).to(dtype),
            "timestep": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": torch.randn(2, words + padding, 24, generator=generator(99)).to(dtype),
            "attention_mask": mask,
            "num_tokens": words,
            "transformer_options": {"patches_replace": {"dit": first}} if replaced else {},
        }

    return network, inputs


CASES = {
    "mochi": mochi,
    "mochi bfloat16": lambda: mochi(dtype=torch.bfloat16),
    "mochi padded text": lambda: mochi(padding=4),
    "mochi one word, one frame": lambda: mochi(words=1, space=(1, 4, 6)),
    "mochi learned sigma, a block replaced by itself": lambda: mochi(
        learn_sigma=True, timestep_scale=1000.0, replaced=True
    ),
}
