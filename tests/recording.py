"""Notes which cells of the scenario tables the passed tests of a session stand behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import ARCHITECTURES, LEVELS
from scenarios import Cells, written


class Recorder:
    """A pytest plugin. A cell counts only if every test of it that ran has passed."""

    def __init__(self):
        self._shown: Cells = {}
        self._failed: set[tuple[str, str, str]] = set()

    @property
    def cells(self) -> Cells:
        return {cell: shown for cell, shown in self._shown.items() if cell not in self._failed}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        for mark in item.iter_markers("scenario"):
            for cell, shown in _cells(item, mark).items():
                if report.failed:
                    self._failed.add(cell)
                elif report.when == "call" and report.passed:
                    self._shown[cell] = shown
        return report

    def pytest_collection_modifyitems(self, items):
        """What compares the tables with this session comes last."""
        items.sort(key=lambda item: "recorded" in getattr(item, "fixturenames", ()))

    def pytest_sessionfinish(self, session):
        if path := session.config.getoption("scenarios"):
            Path(path).write_text(written(self.cells))


def _cells(item, mark) -> Cells:
    """The cells of one test: by its parameters, or as its mark says."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    used = (name for name in ARCHITECTURES if name in item.fixturenames)
    architecture = (
        mark.kwargs.get("architecture") or given.get("subject") or given.get("architecture") or next(used, "dit")
    )
    policies = mark.kwargs.get("policies") or [_name(given["policy"]) if "policy" in given else given["name"]]
    name, *shown = mark.args
    found = {name: shown[0]} if shown else dict(item.user_properties)
    return {(n, architecture, policy): text for n, text in found.items() for policy in policies}


def _name(policy) -> str:
    return next(name for name, other in LEVELS.items() if other == policy)
