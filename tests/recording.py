"""Notes which cells of the scenario tables the passed tests of a session stand behind, and holds the tables against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenarios
from matrix import ARCHITECTURES, LEVELS
from scenarios import Cells, written


class Recorder:
    """A pytest plugin. A cell counts only if every test of it that ran has passed, in whatever process."""

    def __init__(self):
        self._shown: Cells = {}
        self._failed: set[tuple[str, str, str]] = set()
        self.differences: list[str] = []

    @property
    def cells(self) -> Cells:
        return {cell: shown for cell, shown in self._shown.items() if cell not in self._failed}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        report.scenarios = [
            (*cell, text) for mark in item.iter_markers("scenario") for cell, text in _cells(item, mark)
        ]
        return report

    def pytest_runtest_logreport(self, report):
        """Comes to the process that began the session, whichever ran the test."""
        for *cell, text in getattr(report, "scenarios", ()):
            if report.failed:
                self._failed.add(tuple(cell))
            elif report.when == "call" and report.passed:
                self._shown[tuple(cell)] = text

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        config = session.config
        if hasattr(config, "workerinput"):
            return
        if path := config.getoption("scenarios"):
            Path(path).write_text(written(self.cells))
            return
        whole = config.args_source is type(config).ArgsSource.TESTPATHS and not (
            config.option.keyword or config.option.markexpr or session.testsfailed or session.shouldstop
        )
        self.differences = differences(self.cells, scenarios.read(), whole)
        if self.differences:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.differences:
            terminalreporter.section(
                "docs/scenarios.json is not what the tests show: run python tools/dev.py scenarios"
            )
            terminalreporter.write("\n".join(self.differences) + "\n")


def differences(shown: Cells, told: Cells, whole: bool) -> list[str]:
    """Where the record tells something else than this session; `whole`: of every test, so that nothing may be missing."""
    other = [
        f"{cell}: shown {text!r}, told {told.get(cell)!r}" for cell, text in shown.items() if told.get(cell) != text
    ]
    return other + [f"{cell}: told, not shown" for cell in sorted(set(told) - set(shown)) if whole]


def _cells(item, mark):
    """The cells of one test: by its parameters, or as its mark says."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    used = (name for name in ARCHITECTURES if name in item.fixturenames)
    architecture = (
        mark.kwargs.get("architecture") or given.get("subject") or given.get("architecture") or next(used, "dit")
    )
    policies = mark.kwargs.get("policies") or [_name(given["policy"]) if "policy" in given else given["name"]]
    name, *shown = mark.args
    found = {name: shown[0]} if shown else dict(item.user_properties)
    return [((n, architecture, policy), text) for n, text in found.items() for policy in policies]


def _name(policy) -> str:
    return next(name for name, other in LEVELS.items() if other == policy)
