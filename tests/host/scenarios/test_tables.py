"""The tables of docs/scenarios.md and README.md, against what the tests declare and what they have just shown."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import scenarios
from matrix import ARCHITECTURES, SCENARIOS, declared
from recording import Recorder

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


def test_agree_with_what_this_session_has_shown(request, recorded, cells):
    """All of it where every test ran."""
    config = request.config
    differing = {cell: (shown, cells.get(cell)) for cell, shown in recorded.items() if cells.get(cell) != shown}
    assert differing == {}, REMEDY
    whole = config.args_source is type(config).ArgsSource.TESTPATHS and not (
        config.option.keyword or config.option.markexpr
    )
    if whole:
        assert sorted(set(cells) - set(recorded)) == []


def test_say_why_where_a_scenario_is_not_shown():
    assert [name for name, s in SCENARIOS.items() if set(s.architectures) != set(ARCHITECTURES) and not s.reason] == []


def test_count_no_cell_of_which_a_test_failed():
    recorder = Recorder()
    for name, failed in (("sound", False), ("broken", False), ("broken", True)):
        mark = pytest.mark.scenario(name, "equal", architecture="dit", policies=["FORA"]).mark
        item = SimpleNamespace(iter_markers=lambda _, mark=mark: [mark], fixturenames=(), user_properties=[])
        hook = recorder.pytest_runtest_makereport(item, None)
        next(hook)
        with pytest.raises(StopIteration):
            hook.send(SimpleNamespace(failed=failed, passed=not failed, when="call"))
    assert recorder.cells == {("sound", "dit", "FORA"): "equal"}
