"""The shipped workflows in ComfyUI's own frontend, where a Chromium is installed."""

import json
from itertools import combinations

import canvas as frontend
import pytest
from pack import ROOT

pytestmark = pytest.mark.skipif(frontend.browser() is None, reason="no Chromium is installed")
FILES = sorted((ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def canvas(server):
    with frontend.Canvas(server, 900, 600) as opened:
        yield opened


def same(found: dict, api: dict) -> bool:
    """Whether the frontend would send the shipped API form; it also sends the defaults that this leaves out."""
    return found.keys() == api.keys() and all(
        found[key]["class_type"] == node["class_type"]
        and all(found[key]["inputs"].get(name) == value for name, value in node["inputs"].items())
        for key, node in api.items()
    )


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_dropped_workflow_is_complete(canvas, file):
    described = json.loads(file.read_text())["nodes"]
    assert sorted(canvas.drop(file.name, file.read_bytes())) == sorted(node["type"] for node in described)
    assert canvas.missing() == []
    api = json.loads((file.parent / "api" / file.name).read_text())
    assert same(canvas.prompt(), api), "values stand in the wrong widgets: run python tools/dev.py workflows"


@pytest.fixture
def elements(canvas):
    with canvas.drawn_as_elements():
        yield canvas


def test_no_node_covers_another_where_they_are_tallest(elements):
    for file in FILES:
        elements.drop(file.name, file.read_bytes())
        boxes = elements.boxes()
        assert len(boxes) == len(json.loads(file.read_text())["nodes"])
        for (one, x, y, w, h), (other, u, v, s, t) in combinations(boxes, 2):
            apart = x + w <= u or u + s <= x or y + h <= v or v + t <= y
            assert apart, f"{file.stem}: {one} and {other}"


def test_run_is_pressed_and_the_inspectors_picture_appears(canvas):
    file = ROOT / "workflows" / "01_first_run.json"
    workflow = json.loads(file.read_text())
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"][-1] = 2
        if node["type"] == "KSampler":
            node["widgets_values"] = [6 if value == 50 else value for value in node["widgets_values"]]
    canvas.drop(file.name, json.dumps(workflow).encode())
    canvas.run()
    assert canvas.pictures("PreviewImage") == 2
    assert canvas.pictures("PriorCacheInspect") == 1
    assert canvas.our_errors == []


def test_a_refused_workflow_is_told_of(canvas):
    file = ROOT / "workflows" / "01_first_run.json"
    workflow = json.loads(file.read_text())
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][4] = "no such sampler"
    canvas.drop(file.name, json.dumps(workflow).encode())
    with pytest.raises(RuntimeError, match="no such sampler"):
        canvas.run()
