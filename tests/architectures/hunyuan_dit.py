"""Hunyuan-DiT."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def hunyuan_dit(
    words: int = 5, controlled: bool = False, replaced: bool = False, dtype: torch.dtype = torch.float32, **changes
) -> tuple[nn.Module, Callable]:
    """Four heads of 16; of four blocks the last gets what the first puts out, and a ControlNet's share if `controlled`."""
    import comfy.ops
    from comfy.ldm.hydit.models import HunYuanDiT

    settings = {
        "hidden_size": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0, "text_states_dim": 24, "text_states_dim_t5": 16,
        "text_len": 5, "text_len_t5": 7, "input_size": None,
    }  # fmt: skip
    network = opened(HunYuanDiT(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))
    itself = {("double_block", i): lambda args, original: original["original_block"](args) for i in range(4)}

    def noise(seed: int, *shape: int, rows: int = 2) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator(seed)).to(dtype)

    def mask(length: int) -> torch.Tensor:
        return torch.arange(length).repeat(2, 1) < torch.tensor([[length], [length // 2]])

    def inputs(step: int) -> dict:
        return {
            "x": noise(step, 4, 8, 5),
            "t": torch.tensor([900.0, 700.0]) - 100 * step,
            "context": noise(99, words, 24),
            "text_embedding_mask": mask(words),
            "encoder_hidden_states_t5": noise(98, 7, 16),
            "text_embedding_mask_t5": mask(7),
            "image_meta_size": torch.tensor([[64.0, 40.0, 64.0, 40.0, 0.0, 0.0]] * 2),
            "control": {"output": [noise(97, 12, 64, rows=1)]} if controlled else None,
            "transformer_options": {"patches_replace": {"dit": itself}} if replaced else {},
        }

    return network, inputs


CASES = {
    "hunyuan dit": hunyuan_dit,
    "hunyuan dit bfloat16": lambda: hunyuan_dit(dtype=torch.bfloat16),
    "hunyuan dit 1.0, longer text": lambda: hunyuan_dit(size_cond=True, use_style_cond=True, words=10),
    "hunyuan dit no norm of q and k, rms norms": lambda: hunyuan_dit(qk_norm=False, norm="rms", learn_sigma=False),
    "hunyuan dit attention in float32": lambda: hunyuan_dit(attn_precision=torch.float32),
    "hunyuan dit controlnet": lambda: hunyuan_dit(controlled=True),
    "hunyuan dit blocks replaced by themselves": lambda: hunyuan_dit(replaced=True),
}
