"""The shipped workflows as they lie on the canvas: nothing covers anything, all is in a group, a note says what to try."""

from itertools import combinations

import pytest

import workflows

TITLE = 30
"""Height of a node's title, which litegraph draws above its position."""

Box = tuple[float, float, float, float]
WORKFLOWS = pytest.mark.parametrize("workflow", workflows.workflows(), ids=lambda w: w.name)


def box(node: workflows.Node) -> Box:
    """(left, top, right, bottom) with the title."""
    (x, y), (w, h) = node.at, node.size
    return x, y - TITLE, x + w, y + h


def note(workflow: workflows.Workflow) -> Box:
    x, y, w, h = workflow.note_at
    return x, y - TITLE, x + w, y + h


def group(bounding: tuple[int, int, int, int]) -> Box:
    x, y, w, h = bounding
    return x, y, x + w, y + h


def meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: Box, b: Box) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@WORKFLOWS
def test_no_node_covers_another_or_the_note(workflow):
    boxes = {node.key: box(node) for node in workflow.nodes} | {"note": note(workflow)}
    assert [(a, b) for (a, one), (b, two) in combinations(boxes.items(), 2) if meet(one, two)] == []


@WORKFLOWS
def test_every_node_lies_in_exactly_one_group_and_no_groups_meet(workflow):
    groups = {title: group(bounding) for title, bounding in workflow.groups}
    assert len(groups) == len(workflow.groups)
    assert [(a, b) for (a, one), (b, two) in combinations(groups.items(), 2) if meet(one, two)] == []
    around = {n.key: [t for t, g in groups.items() if inside(box(n), g)] for n in workflow.nodes}
    assert {key: found for key, found in around.items() if len(found) != 1} == {}
    assert set(groups) == {title for (title,) in around.values()}
    assert not any(meet(note(workflow), g) for g in groups.values())


@WORKFLOWS
def test_the_note_says_what_happens_and_what_to_try(workflow):
    assert workflow.note.startswith("## ")
    assert "Press **Run**" in workflow.note
    assert "Then try" in workflow.note
    for node in workflow.nodes:
        for model in (workflows.DEMO_MODEL, workflows.DEMO_PIXART, workflows.DEMO_FLUX):
            assert model not in node.inputs.values() or model in workflow.note
