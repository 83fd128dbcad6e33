"""Lumina Image 2.0 and Z-Image."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def lumina(
    kind: str = "NextDiT",
    words: int = 5,
    pooled: bool = False,
    references: int = 0,
    control: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32; references are latents of another noise level in the same sequence.

    control: patches behind every block add in place, as the host's node for Z-Image's ControlNets does.
    """
    import comfy.ops
    from comfy.ldm.lumina import model

    settings = {
        "in_channels": 4, "dim": 64, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "multiple_of": 32,
        "ffn_dim_multiplier": 2.0, "qk_norm": True, "cap_feat_dim": 24, "axes_dims": [8, 12, 12], "axes_lens": [64] * 3,
    }  # fmt: skip
    network = opened(getattr(model, kind)(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))

    patches = {"noise_refiner": [fun], "double_block": [fun]} if control else {}

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        return {
            "x": noise(step, 4, 8, 6),
            "timesteps": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": noise(99, words, 24),
            "num_tokens": words,
            "clip_text_pooled": noise(98, 16) if pooled else None,
            "ref_latents": [noise(90 + i, 4, 4, 4 + 2 * i) for i in range(references)],
            "ref_contexts": [noise(80 + i, 3 + i, 24) for i in range(references)],
            "transformer_options": {"patches": patches},
        }

    return network, inputs


def fun(args: dict) -> dict:
    """Adds to the tokens of the picture what it makes of those that entered the first block; not behind the last one."""
    if args["block_index"] < 2:
        args["img"][:, :12] += 0.3 * args["img_input"][:, :12].tanh()
    return {}


Z_IMAGE = {
    "dim": 256, "n_heads": 8, "n_kv_heads": 8, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 8,
}  # fmt: skip  # its modulation has 256 channels

CASES = {
    "lumina": lumina,
    "lumina no norm of q and k, one word": lambda: lumina(qk_norm=False, n_kv_heads=None, words=1),
    "lumina pooled text": lambda: lumina(clip_text_dim=16, pooled=True, words=7),
    "z-image": lambda: lumina(**Z_IMAGE),
    "z-image bfloat16": lambda: lumina(**Z_IMAGE, dtype=torch.bfloat16),
    "z-image controlnet": lambda: lumina(**Z_IMAGE, control=True),
    "z-image float16": lambda: lumina(**Z_IMAGE, dtype=torch.float16),
    "z-image two references": lambda: lumina(**Z_IMAGE, references=2),
    "z-image omni, one reference": lambda: lumina(**Z_IMAGE, references=1, siglip_feat_dim=12),
    "z-image pixels": lambda: lumina(
        "NextDiTPixelSpace", **Z_IMAGE, decoder_hidden_size=32, decoder_num_res_blocks=1, decoder_max_freqs=2
    ),
}
