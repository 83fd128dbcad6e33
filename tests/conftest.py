"""Loads the pack as ComfyUI does, under the name `priorcache`, and a real ComfyUI in this process where a test asks."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
from pack import load_pack  # noqa: E402

load_pack()


def host_path(variable: str) -> Path:
    if variable not in os.environ:
        raise RuntimeError(f"{variable} is not set: run the tests with 'python tools/dev.py test'")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def comfy():
    """The host's `comfy` package, on the CPU, in inference mode as its executor runs nodes."""
    sys.path.insert(0, str(host_path("COMFYUI_PATH")))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        importlib.import_module("comfy.cli_args").args.cpu = True
        for name in ("comfy.sd", "comfy.sample", "comfy.samplers", "comfy.model_management"):
            importlib.import_module(name)
    finally:
        sys.argv = arguments
    return sys.modules["comfy"]
