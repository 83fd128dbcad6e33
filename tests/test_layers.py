"""Imports point down only, and what is below nodes/ runs without ComfyUI."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {
    "archives": {"errors"},
    "models": {"archives", "errors"},
    "cache_core": {"errors", "models"},
    "priors": {"archives", "cache_core", "errors"},
    "plots": {"cache_core", "errors", "priors"},
    "nodes": {"cache_core", "errors", "models", "priors"},
}
"""What each may import of the others when it is loaded; plots are drawn by functions of nodes, which import them then."""

HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server"}
FACES = {"models/host.py", "models/pixart.py"}
"""Below nodes/, what alone may import ComfyUI."""


def imported(file: Path) -> Iterator[tuple[bool, str]]:
    """(whether of this pack, top-level name) of every import at module level."""
    place = file.relative_to(ROOT).parts[:-1]
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*place[: len(place) - node.level + 1], *filter(None, (node.module or "").split(".")))
            yield from ((True, (*base, name.name)[0]) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield False, node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from ((False, name.name.partition(".")[0]) for name in node.names)


FILES = [
    file for top in BELOW for file in ((ROOT / top).rglob("*.py") if (ROOT / top).is_dir() else [ROOT / f"{top}.py"])
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_down(file):
    name = file.relative_to(ROOT).as_posix()
    top = name.removesuffix(".py").partition("/")[0]
    assert {found for ours, found in imported(file) if ours} <= BELOW[top] | {top}
    if top != "nodes" and name not in FACES:
        assert HOST.isdisjoint(found for ours, found in imported(file) if not ours)
