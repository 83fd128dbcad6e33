"""PixArt-alpha and PixArt-Sigma."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened

WIDTH, TEXT = 48, 24


def pixart(words: int = 5, size: tuple[int, int] = (40, 48), **settings) -> tuple[nn.Module, Callable]:
    """The host derives positions from the latent's size, which must be above 32 on average: large patches."""
    import comfy.ops
    from comfy.ldm.pixart.pixartms import PixArtMS

    shape = {"hidden_size": WIDTH, "num_heads": 4, "depth": 3, "mlp_ratio": 2.0, "caption_channels": TEXT}
    settings = shape | {"patch_size": 8, "pe_interpolation": 1, "micro_condition": False} | settings
    network = opened(PixArtMS(**settings, operations=comfy.ops.disable_weight_init))
    dtype = settings.get("dtype") or torch.float32

    def inputs(step: int) -> dict:
        return {
            "x": torch.randn(2, 4, *size, generator=generator(step)).to(dtype),
            "timesteps": torch.tensor([900.0, 700.0]) - 100 * step,
            "context": torch.randn(2, words, TEXT, generator=generator(99)).to(dtype),
        }

    return network, inputs


def compressed(sampling: str, scale: int = 2, **settings) -> tuple[nn.Module, Callable]:
    """Keys and values of the later blocks at a lower resolution, which the host knows for patches of one pixel only."""
    config = {"sampling": sampling, "scale_factor": scale, "kv_compress_layer": [1, 2]}
    return pixart(size=(4, 64), patch_size=1, kv_compress_config=config, **settings)


CASES = {
    "pixart sigma": pixart,
    "pixart sigma, one word": lambda: pixart(words=1),
    "pixart alpha": lambda: pixart(micro_condition=True, pe_interpolation=None, size=(64, 32), words=3),
    "pixart norm of q and k": lambda: pixart(qk_norm=True, pe_precision=2),
    "pixart noise alone": lambda: pixart(pred_sigma=False, size=(48, 40)),
    "pixart bfloat16": lambda: pixart(dtype=torch.bfloat16),
    "pixart float16": lambda: pixart(dtype=torch.float16, qk_norm=True),
    "pixart keys by convolution": lambda: compressed("conv", qk_norm=True),
    "pixart keys by average": lambda: compressed("ave"),
    "pixart keys thinned": lambda: compressed("uniform"),
    "pixart keys thinned along the sequence": lambda: compressed("uniform_every", scale=4),
}
