"""One command per task: what is behind a command belongs to it."""

import re
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


def test_what_takes_no_options_is_not_run_with_some(ran, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dev.py", "locales", "--help"])
    with pytest.raises(SystemExit):
        dev.main()
    assert ran == []
    assert "locales takes no options, and there are --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", [dev.__doc__, (dev.ROOT / "CONTRIBUTING.md").read_text()], ids=["help", "contributing"]
)
def test_every_command_is_told_and_no_other(text):
    assert set(re.findall(r"python tools/dev\.py (\w+)", text)) == set(dev.COMMANDS)


def test_benchmarks_are_told_by_their_names(monkeypatch, capsys):
    import bench

    for asked in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["bench.py", *asked])
        bench.main()
        assert "NAME: authors, calibrate" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench.py", "nothing"])
    with pytest.raises(SystemExit, match=r"no benchmark 'nothing'; there are: authors, "):
        bench.main()
