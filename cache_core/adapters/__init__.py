"""One architecture, one file."""

from torch import nn

from .base import Adapter, Block, Branch, computing, installed, numbered, overridden
from .auraflow import AuraFlowAdapter
from .dit import DiTAdapter
from .flux import FluxAdapter
from .ltxv import LTXVAdapter
from .lumina import LuminaAdapter
from .pixartms import PixArtMSAdapter
from .qwen_image import QwenImageAdapter
from .sd3 import SD3Adapter
from .wan import WanAdapter

ADAPTERS: tuple[Adapter, ...] = (
    DiTAdapter(),
    FluxAdapter(),
    PixArtMSAdapter(),
    SD3Adapter(),
    QwenImageAdapter(),
    WanAdapter(),
    LuminaAdapter(),
    AuraFlowAdapter(),
    LTXVAdapter(),
)


def adapter_for(network: nn.Module) -> Adapter | None:
    """The adapter of a network, looking through torch.compile; None when the architecture is not known."""
    network = unwrapped(network)
    return next((a for a in ADAPTERS if a.matches(network)), None)


def unwrapped(network: nn.Module) -> nn.Module:
    return getattr(network, "_orig_mod", network)


__all__ = [
    "ADAPTERS",
    "Adapter",
    "Block",
    "Branch",
    "adapter_for",
    "computing",
    "installed",
    "numbered",
    "overridden",
    "unwrapped",
]
