"""Loads the pack as ComfyUI does, under the name `priorcache`, and a real ComfyUI in this process where a test asks."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def comfy():
    """The host's `comfy` package, on the CPU."""
    return load_host()
