"""Loads the pack as ComfyUI does, under the name `priorcache`, and a real ComfyUI in this process where a test asks."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
from pack import load_host, load_pack  # noqa: E402

load_pack()

from recording import Recorder  # noqa: E402
from subjects import saved_dit  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--scenarios", help="write what the tests marked as scenarios have shown to this file")


def pytest_configure(config):
    config.addinivalue_line("markers", "scenario(name, shown): fills a cell of docs/scenarios.md when it passes")
    config.pluginmanager.register(Recorder(), "recorder")


@pytest.fixture(autouse=True)
def repeatable():
    """What is drawn without a generator is the same in every run of a test."""
    torch.manual_seed(0)


SERVED = ("tests/host/test_server.py", "tests/host/test_canvas.py")
"""What shares a running server."""
LONG = (
    *SERVED, "tests/cache_core/test_adapters.py", "tests/cache_core/test_compiler.py", "tests/tools/test_fleet.py", "tests/host/test_inspect.py",
    "tests/host/test_compile.py", "tests/host/scenarios/test_samplers.py", "tests/host/scenarios/test_beside.py",
    "tests/host/scenarios/test_runs.py",
)  # fmt: skip
"""Files that take longest: they begin first, so that no process ends long after the others."""


def pytest_collection_modifyitems(items):
    places = {ROOT / file: place for place, file in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile` the tests of a file stay in one process, which then makes what they share once."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "served" if file in SERVED else file

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish(session):
    """Looking for garbage takes a twelfth of the time: all that is imported stays, and the rest is looked at less often."""
    settled()
    gc.set_threshold(50_000, 20, 20)


def settled() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def comfy():
    """The host's `comfy` package, on the CPU."""
    host = load_host()
    settled()
    return host


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny DiT as a file, of the kind of the demo's."""
    return saved_dit(tmp_path_factory.mktemp("models"), "tiny")
