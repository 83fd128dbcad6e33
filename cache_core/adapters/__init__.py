"""One architecture, one file."""

from torch import nn

from ..sites import Site
from .ace_step import AceStepAdapter
from .ace_step15 import AceStep15Adapter
from .auraflow import AuraFlowAdapter
from .base import Adapter, Block, Branch, computing, numbered, returns, width
from .cosmos_predict2 import CosmosPredict2Adapter
from .dit import DiTAdapter
from .ernie_image import ErnieImageAdapter
from .flux import FluxAdapter
from .hidream import HiDreamAdapter
from .hunyuan_dit import HunyuanDiTAdapter
from .ideogram4 import Ideogram4Adapter
from .joyimage import JoyImageAdapter
from .kandinsky5 import Kandinsky5Adapter
from .krea2 import Krea2Adapter
from .lens import LensAdapter
from .ltxav import LTXAVAdapter
from .ltxv import LTXVAdapter
from .lumina import LuminaAdapter
from .minimax_h3 import MiniMaxH3Adapter
from .mochi import MochiAdapter
from .omnigen2 import OmniGen2Adapter
from .pixartms import PixArtMSAdapter
from .qwen_image import QwenImageAdapter
from .routes import MISFITS, installed, overridden, uncompiled, unlike, unwrapped
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
    LTXAVAdapter(),
    CosmosPredict2Adapter(),
    HiDreamAdapter(),
    Krea2Adapter(),
    ErnieImageAdapter(),
    Ideogram4Adapter(),
    LensAdapter(),
    OmniGen2Adapter(),
    JoyImageAdapter(),
    HunyuanDiTAdapter(),
    Kandinsky5Adapter(),
    MochiAdapter(),
    MiniMaxH3Adapter(),
    AceStepAdapter(),
    AceStep15Adapter(),
)


def sites_of(network: nn.Module) -> tuple[Site, ...]:
    """Every branch of a network, in execution order; none when the architecture is not known."""
    network = unwrapped(network)
    adapter = adapter_for(network)
    with uncompiled(network):
        return tuple(s for block in adapter.blocks(network) for s in block.sites.values()) if adapter else ()


def adapter_for(network: nn.Module) -> Adapter | None:
    """The adapter of a network, looking through torch.compile; None when there is none that fits."""
    adapter, reason = _found(network)
    return None if reason else adapter


def misfit(network: nn.Module) -> str | None:
    """Why the adapter that knows a network by its names cannot serve it in this host; None when none knows it."""
    adapter, reason = _found(network)
    return reason and unlike(adapter.architecture, reason)


def _found(network: nn.Module) -> tuple[Adapter | None, str | None]:
    """(the adapter that knows a network by its names, what that adapter did not find in it)."""
    network = unwrapped(network)
    with uncompiled(network):
        adapter = next((a for a in ADAPTERS if a.matches(network)), None)
        try:
            for block in adapter.blocks(network) if adapter else ():
                for modules in block.captures.values():
                    width(modules[0])
        except (*MISFITS, StopIteration) as error:
            return adapter, str(error) or type(error).__name__
    return adapter, None


__all__ = [
    "ADAPTERS",
    "Adapter",
    "Block",
    "Branch",
    "adapter_for",
    "computing",
    "installed",
    "misfit",
    "numbered",
    "overridden",
    "returns",
    "sites_of",
    "unwrapped",
]
