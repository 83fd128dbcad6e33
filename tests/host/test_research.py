"""docs/research.md: its policy works as it stands there, and what is cited is this version."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import Trace
from subjects import close

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def halving(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "research.md").read_text(), re.DOTALL)
    file = tmp_path / "halving.py"
    file.write_text(code)
    return runpy.run_path(str(file), run_name="halving")["Halving"]


def test_the_policy_of_the_page_samples(host, model, halving):
    trace, stock = Trace(), host.sample(model, steps=8)
    out = host.sample(host.attach(model, halving(), trace), steps=8)
    (run,) = trace.runs
    assert run.notes == []
    reused = {row.step for row in run.rows if row.action is Action.REUSE}
    assert reused == {3, 5, 7}
    assert {row.kind for row in run.rows if row.step in reused} == {"corrected"}
    assert 0 < close(out, stock) < 0.5
    plain = host.sample(host.attach(model, halving(step_size=0.0), Trace()), steps=8)
    assert not torch.equal(plain, out)


def test_every_policy_is_in_the_list_of_papers():
    page, files = (ROOT / "docs" / "research.md").read_text(), (ROOT / "cache_core" / "policies").glob("*.py")
    numbers = [n for file in files for n in re.findall(r"\(arXiv ([\d.]+)\)\.", file.read_text().partition("\n")[0])]
    assert len(numbers) == 7
    assert [number for number in numbers if f"arXiv {number}" not in page] == []


def test_what_is_cited_is_this_version():
    project, cited = (ROOT / "pyproject.toml").read_text(), (ROOT / "CITATION.cff").read_text()
    (version,) = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    (repository,) = re.findall(r'^Repository = "(.*)"$', project, re.MULTILINE)
    assert f"\nversion: {version}\n" in cited
    assert f"\nrepository-code: {repository}\n" in cited
