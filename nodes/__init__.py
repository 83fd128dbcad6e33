"""The ComfyUI face: thin nodes, one file per task, no algorithm in them."""

from comfy_api.latest import ComfyExtension, io

from .apply import PriorCacheApply
from .auto import PriorCacheAuto
from .budget import PriorCacheMemoryBudget
from .calibrate import PriorCacheCalibrate
from .compare import PriorCacheCompare
from .corrections import PriorCacheEOC, PriorCacheGOC, PriorCacheTaylor
from .demo import PriorCacheDemoModel, PriorCacheDemoPrompt, PriorCacheDemoVAE
from .dit import PriorCacheDiTLabel, PriorCacheLoadDiT
from .duca import PriorCacheDuCa, PriorCacheToCa
from .fora import PriorCacheFORA
from .forecast import PriorCacheForecast, PriorCachePlan, PriorCacheSearch
from .inspect import PriorCacheInspect
from .l2c import PriorCacheL2C, PriorCacheLoadRouter, PriorCacheTrainRouter
from .pixart import PriorCacheLoadPixArt
from .prior import PriorCacheLoadPrior, PriorCacheMergePriors, PriorCacheSavePrior, register_folder
from .replay import PriorCacheReplay, PriorCacheStamp
from .sweep import PriorCacheSweep
from .tune import PriorCacheTune

NODES: list[type[io.ComfyNode]] = [
    PriorCacheLoadDiT,
    PriorCacheDiTLabel,
    PriorCacheFORA,
    PriorCacheApply,
    PriorCacheCalibrate,
    PriorCacheSavePrior,
    PriorCacheLoadPrior,
    PriorCacheInspect,
    PriorCacheDemoPrompt,
    PriorCacheDemoVAE,
    PriorCacheLoadPixArt,
    PriorCacheCompare,
    PriorCacheEOC,
    PriorCacheGOC,
    PriorCacheTaylor,
    PriorCacheL2C,
    PriorCacheLoadRouter,
    PriorCacheTrainRouter,
    PriorCacheForecast,
    PriorCachePlan,
    PriorCacheSearch,
    PriorCacheDuCa,
    PriorCacheToCa,
    PriorCacheSweep,
    PriorCacheAuto,
    PriorCacheStamp,
    PriorCacheReplay,
    PriorCacheMemoryBudget,
    PriorCacheTune,
    PriorCacheMergePriors,
    PriorCacheDemoModel,
]


class PriorCacheExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
