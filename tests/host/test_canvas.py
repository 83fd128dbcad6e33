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


WIRE = """([policies, sigmas]) => {
  const graph = window.app.graph, sweep = graph._nodes.find(node => node.type === 'PriorCacheSweep')
  const joined = (type, slot) => {
    const node = window.LiteGraph.createNode(type)
    graph.add(node)
    node.connect(0, sweep, sweep.inputs.findIndex(slot))
  }
  for (let i = 0; i < policies; i++)
    joined('PriorCacheForecast', input => input.name.startsWith('policies.') && input.link == null)
  if (sigmas) joined('BasicScheduler', input => input.name === 'sigmas')
  return sweep.inputs.filter(input => input.type !== 'COMBO' && !input.widget).map(input => input.name)
}"""


def test_a_sweep_takes_one_policy_after_another_beside_sigmas(canvas):
    file = ROOT / "workflows" / "11_sweep.json"
    canvas.drop(file.name, file.read_bytes())
    before = next(node for node in canvas.prompt().values() if node["class_type"] == "PriorCacheSweep")["inputs"]
    names = canvas.page.evaluate(WIRE, [3, True])
    canvas.page.wait_for_timeout(500)
    after = next(node for node in canvas.prompt().values() if node["class_type"] == "PriorCacheSweep")["inputs"]
    new = after.keys() - before.keys()
    assert len([name for name in new if name.startswith("policies.")]) == 3
    assert new == {name for name in new if name.startswith("policies.")} | {"sigmas"}
    assert {name: after[name] for name in before} == before
    assert "sigmas" in names
