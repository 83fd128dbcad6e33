"""AuraFlow."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def auraflow(words: int = 5, replaced: bool = False, **changes) -> tuple[nn.Module, Callable]:
    """Two heads of 32; eight register tokens stand before the words."""
    import comfy.ops
    from comfy.ldm.aura.mmdit import MMDiT

    settings = {
        "dim": 64, "n_layers": 4, "n_double_layers": 2, "n_heads": 2, "global_conddim": 48, "cond_seq_dim": 24, "max_seq": 64,
    }  # fmt: skip
    network = opened(MMDiT(**settings | changes, operations=comfy.ops.disable_weight_init))
    itself = {
        (kind, 0): lambda args, original: original["original_block"](args) for kind in ("double_block", "single_block")
    }

    def inputs(step: int) -> dict:
        return {
            "x": torch.randn(2, 4, 8, 6, generator=generator(step)),
            "timestep": torch.tensor([0.9, 0.7]) - 0.1 * step,
            "context": torch.randn(2, words, 24, generator=generator(99)),
            "transformer_options": {"patches_replace": {"dit": itself}} if replaced else {},
        }

    return network, inputs


CASES = {
    "auraflow": auraflow,
    "auraflow one word": lambda: auraflow(words=1),
    "auraflow positions stretched": lambda: auraflow(max_seq=9, n_double_layers=1),
    "auraflow blocks replaced by themselves": lambda: auraflow(replaced=True),
}
