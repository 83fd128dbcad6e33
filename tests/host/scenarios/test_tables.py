"""The tables of docs/scenarios.md and README.md, against what the tests declare and what they have just shown."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import scenarios
from matrix import ARCHITECTURES, SCENARIOS, declared
from recording import Recorder, differences

REMEDY = "run python tools/dev.py scenarios"


@pytest.fixture(scope="module")
def cells():
    return scenarios.read()


def test_have_every_cell_that_is_declared_and_no_other(host, cells):
    wanted = declared(host.comfy.samplers.KSampler.SAMPLERS)
    assert sorted(wanted - set(cells)) == [], REMEDY
    assert sorted(set(cells) - wanted) == [], REMEDY


def test_are_written_from_the_record(cells):
    assert scenarios.PAGE.read_text() == scenarios.page(cells), REMEDY
    readme = scenarios.README.read_text()
    assert readme == scenarios.inserted(readme, cells), REMEDY


def test_say_why_where_a_scenario_is_not_shown():
    assert [name for name, s in SCENARIOS.items() if set(s.architectures) != set(ARCHITECTURES) and not s.reason] == []


@pytest.fixture
def recorder():
    return Recorder()


def reported(recorder: Recorder, name: str, failed: bool) -> None:
    """As pytest tells of a test, and as it reaches the process that began the session."""
    mark = pytest.mark.scenario(name, "equal", architecture="dit", policies=["FORA"]).mark
    item = SimpleNamespace(iter_markers=lambda _: [mark], fixturenames=(), user_properties=[])
    hook = recorder.pytest_runtest_makereport(item, None)
    next(hook)
    with pytest.raises(StopIteration) as made:
        hook.send(SimpleNamespace(failed=failed, passed=not failed, when="call"))
    recorder.pytest_runtest_logreport(made.value.value)


def test_count_no_cell_of_which_a_test_failed(recorder):
    for name, failed in (("sound", False), ("broken", False), ("broken", True)):
        reported(recorder, name, failed)
    assert recorder.cells == {("sound", "dit", "FORA"): "equal"}


def test_are_held_against_what_a_session_shows():
    first, second = ("sound", "dit", "FORA"), ("other", "dit", "FORA")
    assert differences({first: "equal"}, {first: "equal", second: "equal"}, whole=False) == []
    assert len(differences({first: "equal"}, {first: "equal", second: "equal"}, whole=True)) == 1
    assert len(differences({first: "equal"}, {first: "within .1"}, whole=False)) == 1
    assert len(differences({second: "equal"}, {first: "equal"}, whole=True)) == 2
