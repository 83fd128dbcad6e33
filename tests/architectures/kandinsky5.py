"""Kandinsky 5, of video and of pictures."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def kandinsky5(
    words: int = 5,
    space: tuple[int, ...] = (3, 4, 6),
    concat: bool = False,
    replaced: bool = False,
    stretched: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32, in patches of 2 x 2.

    Optional inputs: `concat` channels of a given picture and its mask, latents that are `replaced` in the first frame,
    positions that are `stretched`.
    """
    import comfy.ops
    from comfy.ldm.kandinsky5.model import Kandinsky5

    settings = {
        "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 24, "in_text_dim2": 8, "time_dim": 16, "model_dim": 64,
        "ff_dim": 96, "visual_embed_dim": (9 if concat else 4) * 4, "num_text_blocks": 1, "num_visual_blocks": 3,
        "axes_dims": (8, 12, 12),
    }  # fmt: skip
    network = opened(Kandinsky5(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        x = noise(step, 4, *space)
        return {
            "x": torch.cat((x, noise(97, 5, *space)), dim=1) if concat else x,
            "timestep": torch.tensor([900.0, 700.0]) - 100 * step,
            "context": noise(99, words, 24),
            "y": noise(98, 8),
            "time_dim_replace": noise(96, 4, 1, *space[1:]) if replaced else None,
            "transformer_options": {"rope_options": {"scale_x": 0.5, "shift_t": 1.0}} if stretched else {},
        }

    return network, inputs


CASES = {
    "kandinsky 5": kandinsky5,
    "kandinsky 5 bfloat16": lambda: kandinsky5(dtype=torch.bfloat16, words=1),
    "kandinsky 5 float16": lambda: kandinsky5(dtype=torch.float16),
    "kandinsky 5 image to video": lambda: kandinsky5(concat=True, replaced=True, space=(3, 5, 6)),
    "kandinsky 5 positions stretched": lambda: kandinsky5(stretched=True, num_text_blocks=0),
    "kandinsky 5 image": lambda: kandinsky5(space=(8, 6), rope_scale_factor=(1.0, 1.0, 1.0)),
}
