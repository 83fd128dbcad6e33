"""Loads the pack as ComfyUI does, under the name `priorcache`, and a real ComfyUI into this process.

The pack's root never goes on the path: its folder `nodes` would shadow the host's.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_pack():
    if "priorcache" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "priorcache", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = sys.modules["priorcache"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["priorcache"]


def load_host(path: str | Path | None = None, cpu: bool = True, fp32: bool = False):
    """The `comfy` package of a ComfyUI folder (by default the one that dev.py chose), in this process; else than on the
    CPU on whatever device the host prefers. fp32: diffusion models in float32, their products in TF32 where there is such.
    The first call decides.
    """
    path = path or os.environ.get("COMFYUI_PATH")
    if path is None:
        raise RuntimeError("COMFYUI_PATH is not set: start this by 'python tools/dev.py'")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        if "comfy.model_management" not in sys.modules:
            args = importlib.import_module("comfy.cli_args").args
            args.cpu, args.fp32_unet = cpu, fp32
            if fp32:
                importlib.import_module("torch").set_float32_matmul_precision("high")
        for name in ("comfy.sd", "comfy.sample", "comfy.samplers", "comfy.model_management"):
            importlib.import_module(name)
    finally:
        sys.argv = arguments
    return sys.modules["comfy"]
