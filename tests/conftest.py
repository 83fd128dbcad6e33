"""Loads the pack as ComfyUI does, under the name `priorcache`, and a real ComfyUI in this process where a test asks."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
from pack import load_host, load_pack  # noqa: E402

load_pack()

from recording import Recorder  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--scenarios", help="write what the tests marked as scenarios have shown to this file")


def pytest_configure(config):
    config.addinivalue_line("markers", "scenario(name, shown): fills a cell of docs/scenarios.md when it passes")
    config.pluginmanager.register(Recorder(), "recorder")


SERVED = ("host/test_server.py", "host/test_canvas.py")
"""What shares a running server."""
LONG = (
    *SERVED, "tools/test_fleet.py", "cache_core/test_adapters.py", "host/test_inspect.py", "host/test_compile.py",
    "host/scenarios/test_samplers.py", "host/scenarios/test_beside.py", "host/scenarios/test_runs.py",
)  # fmt: skip
"""Files that take longest: they begin first, so that no process ends long after the others."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The tests of a file stay in one process, which then makes what they share once (`pytest --dist loadgroup`)."""
    places = {str(Path(__file__).parent / file): place for place, file in enumerate(LONG)}
    items.sort(key=lambda item: places.get(str(item.path), len(LONG)))
    for item in items:
        own = item.path.relative_to(ROOT).as_posix() if item.path.is_relative_to(ROOT) else str(item.path)
        item.add_marker(pytest.mark.xdist_group("served" if own.removeprefix("tests/") in SERVED else own))


def pytest_collection_finish(session):
    """All that is imported by now stays: Python need not look through it again for what is garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def comfy():
    """The host's `comfy` package, on the CPU."""
    return load_host()
