"""Where something is measured."""

from __future__ import annotations

import platform

import torch


def device() -> torch.device:
    """Where models are sampled and pictures judged."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def device_name() -> str:
    """Of an accelerator; of a CPU how much of it is used."""
    found = device()
    return f"CPU, {torch.get_num_threads()} threads" if found.type == "cpu" else torch.cuda.get_device_name(found)


def versions() -> str:
    import comfyui_version

    return f"torch {torch.__version__}, ComfyUI {comfyui_version.__version__}"


def machine() -> str:
    """In words, with everything that figures depend on."""
    import comfy.cli_args

    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device().type == "cuda":
        precision = "float32, products in TF32" if comfy.cli_args.args.fp32_unet else "16 bits, as ComfyUI chooses"
        name = f"{device_name()}, {precision}"
    return f"{name}, {versions()}"
