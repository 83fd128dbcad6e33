"""Qwen-Image, and Mage-Flow, which is made of the same block."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def qwen_image(
    words: int = 5,
    masked: bool = False,
    references: int = 0,
    control: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32; references are latents that stand beside the picture's tokens.

    control: a ControlNet's residuals, and DiffSynth's, which a patch behind every block adds in place.
    """
    import comfy.ops
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    settings = {
        "in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 2,
        "joint_attention_dim": 24, "axes_dims_rope": (8, 12, 12),
    }  # fmt: skip
    network = opened(
        QwenImageTransformer2DModel(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init)
    )

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        mask = torch.ones(2, words, dtype=torch.long)
        mask[:, words // 2 :] = 0
        given = {
            "x": noise(step, 4, 1, 8, 6),
            "timestep": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": noise(99, words, 24),
            "attention_mask": mask if masked else None,
            "ref_latents": [noise(90 + i, 4, 1, 4, 4 + 2 * i) for i in range(references)] or None,
            "transformer_options": {"patches": {"double_block": [diffsynth]}} if control else {},
        }
        if control:
            given["control"] = {"input": [noise(80, 12, 64)[:1], None, noise(81, 10, 64)[:1]]}
        return given

    return network, inputs


def diffsynth(args: dict) -> dict:
    """Adds to the tokens of the picture what it makes of them, as the host's node for DiffSynth's ControlNets does."""
    args["img"][:, :12] += 0.3 * args["img"][:, :12].tanh()
    return args


def mage_flow(words: int = 5) -> tuple[nn.Module, Callable]:
    import comfy.ops

    model = pytest.importorskip("comfy.ldm.mage_flow.model", reason="newer than this host")
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
    }
    network = opened(
        model.MageFlowTransformer2DModel(
            **settings, joint_attention_dim=24, axes_dims_rope=(8, 12, 12), operations=comfy.ops.disable_weight_init
        )
    )

    def inputs(step: int) -> dict:
        return {
            "x": torch.randn(2, 4, 4, 3, generator=generator(step)),
            "timestep": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": torch.randn(2, words, 24, generator=generator(99)),
            "transformer_options": {},
        }

    return network, inputs


CASES = {
    "qwen image": qwen_image,
    "qwen image masked text": lambda: qwen_image(words=6, masked=True),
    "qwen image one word, two references": lambda: qwen_image(words=1, references=2),
    "qwen image clean references": lambda: qwen_image(references=2, default_ref_method="index_timestep_zero"),
    "mage flow": mage_flow,
    "qwen image additional timestep": lambda: qwen_image(use_additional_t_cond=True),
    "qwen image controlnets, one reference": lambda: qwen_image(control=True, references=1),
    "qwen image bfloat16": lambda: qwen_image(references=1, dtype=torch.bfloat16),
}
