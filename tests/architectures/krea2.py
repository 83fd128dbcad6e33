"""Krea 2."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def krea2(
    words: int = 5,
    size: tuple[int, ...] = (1, 8, 6),
    references: str | None = None,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32, text of three layers; `references`: how the tokens of two further images are placed and modulated."""
    import comfy.ops

    model = pytest.importorskip("comfy.ldm.krea2.model", reason="newer than this host")
    settings = {
        "features": 64, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 1, "multiplier": 2, "layers": 3, "channels": 4,
        "txtlayers": 3, "txtheads": 2, "txtkvheads": 2,
    }  # fmt: skip
    network = opened(model.SingleStreamDiT(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        given = {
            "x": noise(step, 4, *size),
            "timesteps": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": noise(99, words, 48),
            "transformer_options": {},
        }
        if references:
            given["ref_latents"] = [noise(90, 4, 1, 4, 6), noise(91, 4, 3, 4)]
            given["ref_latents_method"] = references
        return given

    return network, inputs


CASES = {
    "krea 2": krea2,
    "krea 2 one word, as many keys as queries": lambda: krea2(words=1, kvheads=None, bias=True),
    "krea 2 odd size": lambda: krea2(size=(7, 5), words=7),
    "krea 2 references": lambda: krea2(references="index"),
    "krea 2 clean references": lambda: krea2(references="index_timestep_zero"),
    "krea 2 clean references, bfloat16": lambda: krea2(references="index_timestep_zero", dtype=torch.bfloat16),
    "krea 2 float16": lambda: krea2(dtype=torch.float16),
}
