"""HiDream-I1, and E1, which lays the given picture beside the one that it makes."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def hidream(
    words: int = 5, more: int = 0, given: bool = False, dtype: torch.dtype = torch.float32, **changes
) -> tuple[nn.Module, Callable]:
    """Two heads of 32; Llama has three layers, and may read `more` words than T5."""
    import comfy.ops
    from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel

    settings = {
        "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 2, "caption_channels": [24, 20], "text_emb_dim": 16, "axes_dims_rope": (16, 8, 8),
        "max_resolution": (16, 16), "llama_layers": [0, 1, 2, 2],
    }  # fmt: skip
    network = opened(
        HiDreamImageTransformer2DModel(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init)
    )

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        return {
            "x": noise(step, 4, 8, 6),
            "t": torch.tensor([900.0, 700.0]) - 100 * step,
            "y": noise(98, 16),
            "context": noise(99, words, 24),
            "encoder_hidden_states_llama3": noise(97, 3, words + more, 20),
            "transformer_options": {},
        } | ({"image_cond": noise(96, 4, 8, 6)} if given else {})

    return network, inputs


CASES = {
    "hidream": hidream,
    "hidream bfloat16": lambda: hidream(dtype=torch.bfloat16),
    "hidream one word": lambda: hidream(words=1),
    "hidream long prompt": lambda: hidream(more=4),
    "hidream no experts": lambda: hidream(num_routed_experts=0),
    "hidream three of five experts": lambda: hidream(num_routed_experts=5, num_activated_experts=3),
    "hidream rotation of half a head": lambda: hidream(axes_dims_rope=(8, 4, 4)),
    "hidream e1": lambda: hidream(given=True),
}
