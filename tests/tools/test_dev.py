"""One command per task: what is behind a command belongs to it."""

import sys
from pathlib import Path

import dev
import pytest


@pytest.fixture
def ran(monkeypatch):
    """What would be run, in place of running it."""
    found = []
    monkeypatch.setattr(dev, "environment", lambda own: (Path("python"), Path("latest"), Path("floor")))
    monkeypatch.setattr(dev, "run", lambda *command, **_: found.append(command))
    return found


def test_help_is_that_of_the_command_in_front_of_it(ran, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dev.py", "bench", "papers", "--help"])
    dev.main()
    assert ran == [(Path("python"), "tools/bench.py", "papers", "--help")]
    monkeypatch.setattr(sys, "argv", ["dev.py", "--help"])
    dev.main()
    assert len(ran) == 1
    assert "python tools/dev.py demo" in capsys.readouterr().out


def test_options_are_not_guessed_from_their_beginnings(ran, monkeypatch):
    """--ho would be --host, whose folder is not there."""
    monkeypatch.setattr(sys, "argv", ["dev.py", "judge", "--ho", "1"])
    dev.main()
    assert ran == [(Path("python"), "tools/judge.py", "--ho", "1")]
