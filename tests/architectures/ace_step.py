"""ACE-Step."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import nn

from . import generator, opened

SIZES = {
    "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4, "mlp_ratio": 1.5, "max_position": 64,
    "text_embedding_dim": 24, "ssl_latent_dims": [8, 8], "lyric_encoder_vocab_size": 32, "lyric_hidden_size": 32,
}  # fmt: skip


def short_of_lyrics():
    """The host makes its encoder of lyrics in one size only: here it is small."""
    from comfy.ldm.ace import model

    small = partial(model.LyricEncoder, output_size=32, attention_heads=2, linear_units=48, num_blocks=1)
    return mock.patch.object(model, "LyricEncoder", small)


def ace_step(
    length: int = 21, words: int = 5, dtype: torch.dtype = torch.float32, masked: bool = False, **further
) -> tuple[nn.Module, Callable]:
    """Four heads of 16; a token for every frame, and a speaker before the words and the lyrics."""
    import comfy.ops
    from comfy.ldm.ace.model import ACEStepTransformer2DModel

    with short_of_lyrics():
        network = ACEStepTransformer2DModel(**SIZES, dtype=dtype, operations=comfy.ops.disable_weight_init)
    opened(network)

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def mask(length: int) -> torch.Tensor:
        return torch.tensor([[1] * length, [1] * (length - 2) + [0] * 2])

    def inputs(step: int) -> dict:
        found = {
            "x": noise(step, 8, 16, length),
            "timestep": torch.tensor([900.0, 700.0]) - 100 * step,
            "context": noise(99, words, 24),
            "speaker_embeds": noise(98, 512),
            "lyric_token_idx": torch.randint(32, (2, 7), generator=generator(97)),
        }
        if masked:
            masks = {"attention_mask": torch.ones(2, length), "text_attention_mask": mask(words), "lyric_mask": mask(7)}
            found |= {name: of.to(dtype) for name, of in masks.items()}
        return found | further

    return network, inputs


def overflowing() -> tuple[nn.Module, Callable]:
    """One channel of what linear attention puts out leaves the range of half precision in every block."""
    network, inputs = ace_step(dtype=torch.float16)
    for part in (network.t_block[-1].weight, network.t_block[-1].bias):
        part.data[2 * network.inner_dim] = 0  # its gate is that of the blocks alone
    for block in network.transformer_blocks:
        block.scale_shift_table.data[2, 0] = 1e-4
        block.attn.to_out[0].bias.data[0] = torch.inf
    return network, inputs


CASES = {
    "ace-step": ace_step,
    "ace-step bfloat16": lambda: ace_step(dtype=torch.bfloat16),
    "ace-step one word, quiet lyrics": lambda: ace_step(words=1, lyrics_strength=0.5),
    "ace-step masked": lambda: ace_step(masked=True),
    "ace-step float16 overflowing": overflowing,
}
