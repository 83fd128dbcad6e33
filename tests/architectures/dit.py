"""The pack's own DiT."""

from collections.abc import Callable

import torch
from priorcache.models.dit import DiT, DiTConfig
from torch import nn


def dit(**changes) -> tuple[nn.Module, Callable[[int], dict]]:
    """A small random DiT, gates open, and inputs per step."""
    settings = {"hidden_size": 32, "depth": 3, "num_heads": 4, "patch_size": 2, "in_channels": 4, "num_classes": 10}
    config = DiTConfig(**settings | {"learn_sigma": False, "grid_size": 4} | changes)
    torch.manual_seed(0)
    network = DiT(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)

    def inputs(step: int) -> dict:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(2, config.in_channels, 8, 8, generator=generator)
        return {"x": x, "t": torch.full((2,), 900.0 - 100 * step), "y": torch.tensor([1, 10])}

    return network.eval(), inputs


CASES = {
    "dit": dit,
    "dit learned sigma": lambda: dit(learn_sigma=True),
    "dit pixels, patch 4": lambda: dit(in_channels=3, patch_size=4, grid_size=2),
}
