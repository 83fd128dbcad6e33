"""ComfyUI-PriorCache: feature caching for diffusion transformers. What ComfyUI imports, and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import PriorCacheExtension

    return PriorCacheExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
