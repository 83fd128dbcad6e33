"""One architecture, one file."""

from torch import nn

from ..sites import Site
from .auraflow import AuraFlowAdapter
from .base import Adapter, Block, Branch, computing, numbered, returns
from .dit import DiTAdapter
from .flux import FluxAdapter
from .ltxv import LTXVAdapter
from .lumina import LuminaAdapter
from .pixartms import PixArtMSAdapter
from .qwen_image import QwenImageAdapter
from .routes import installed, overridden, uncompiled, unwrapped
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


def sites_of(network: nn.Module) -> tuple[Site, ...]:
    """Every branch of a network, in execution order; none when the architecture is not known."""
    network = unwrapped(network)
    adapter = adapter_for(network)
    with uncompiled(network):
        return tuple(s for block in adapter.blocks(network) for s in block.sites.values()) if adapter else ()


def adapter_for(network: nn.Module) -> Adapter | None:
    """The adapter of a network, looking through torch.compile; None when the architecture is not known."""
    network = unwrapped(network)
    with uncompiled(network):
        return next((a for a in ADAPTERS if a.matches(network)), None)


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
    "returns",
    "sites_of",
    "unwrapped",
]
