"""Stable Diffusion 3 and 3.5."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def sd3(
    words: int = 5, pooled: bool = True, replaced: bool = False, dtype: torch.dtype = torch.float32, **changes
) -> tuple[nn.Module, Callable]:
    """Two heads of 64; the last block ends the text."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    settings = {
        "depth": 2, "num_blocks": 3, "input_size": None, "in_channels": 4, "adm_in_channels": 8, "pos_embed_max_size": 8,
        "num_patches": 64, "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}
        },
    }  # fmt: skip
    network = opened(
        OpenAISignatureMMDITWrapper(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init)
    )
    first = {("double_block", 0): lambda args, original: original["original_block"](args)}

    def inputs(step: int) -> dict:
        rng = generator(step)
        return {
            "x": torch.randn(2, 4, 8, 6, generator=rng).to(dtype),
            "timesteps": torch.tensor([900.0, 700.0]) - 100 * step,
            "context": torch.randn(2, words, 24, generator=generator(99)).to(dtype),
            "y": torch.randn(2, 8, generator=generator(98)).to(dtype) if pooled else None,
            "transformer_options": {"patches_replace": {"dit": first}} if replaced else {},
        }

    return network, inputs


CASES = {
    "sd3": sd3,
    "sd3 bfloat16": lambda: sd3(dtype=torch.bfloat16, qk_norm="rms", x_block_self_attn_layers=[0]),
    "sd3 rms norm of q and k": lambda: sd3(qk_norm="rms", words=3),
    "sd3 layer norm of q and k": lambda: sd3(qk_norm="ln"),
    "sd3 second attention": lambda: sd3(qk_norm="rms", x_block_self_attn_layers=[0, 1]),
    "sd3 second attention everywhere": lambda: sd3(x_block_self_attn=True, words=1),
    "sd3 sinusoidal positions, no pooled text": lambda: sd3(num_patches=None, adm_in_channels=None, pooled=False),
    "sd3 register tokens, rms norm": lambda: sd3(register_length=2, rmsnorm=True, qkv_bias=False),
    "sd3 context processor, four blocks": lambda: sd3(context_processor_layers=1, context_size=24, num_blocks=4),
    "sd3 a block replaced by itself": lambda: sd3(replaced=True),
}
