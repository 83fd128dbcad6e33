"""Loads the pack as ComfyUI does, under the name `priorcache`: its folder `nodes` must never shadow the host's."""

from __future__ import annotations

import importlib.util
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
