"""The node Inspect on real runs: pictures, sentences, files."""

import csv
import json
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from priorcache.cache_core.policies import FORA, GOC, DuCa, Forecast, Full, ToCa
from priorcache.cache_core.trace import Trace
from priorcache.priors.plan import Plan

LIGHT, DARK = (1.0, 1.0, 1.0), tuple(int("1F2023"[i : i + 2], 16) / 255 for i in (0, 2, 4))


@pytest.fixture(scope="session")
def node(host):
    from priorcache.nodes import inspect

    return inspect


@pytest.fixture
def inspect(node, tmp_path, monkeypatch):
    """The node, as the host calls it, with output and temp folders of its own."""
    import folder_paths
    from comfy_execution.graph import DynamicPrompt

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    hidden = SimpleNamespace(prompt=None, unique_id="9", dynprompt=DynamicPrompt({}), extra_pnginfo=None)
    monkeypatch.setattr(node.PriorCacheInspect, "hidden", hidden)
    (tmp_path / "output").mkdir()
    return node.PriorCacheInspect.execute


@pytest.fixture
def output(tmp_path):
    def names() -> list[str]:
        return sorted(
            p.relative_to(tmp_path / "output").as_posix() for p in (tmp_path / "output").rglob("*") if p.is_file()
        )

    return SimpleNamespace(folder=tmp_path / "output", names=names)


@pytest.fixture(scope="module")
def traces(host):
    """Of one model, by policy."""
    model, found = host.model(), {}
    policies = {
        "full": (Full(), "errors"),
        "fora": (FORA(2, "aligned"), "truth"),
        "goc": (GOC(FORA(2, "aligned")), "truth"),
        "duca": (DuCa("dit"), "errors"),
        "forecast": (Forecast(2.0), "errors"),
        "forecast of 8": (Forecast(2.0), "errors"),
    }
    for name, (policy, measure) in policies.items():
        trace = found[name] = Trace()
        host.sample(
            host.attach(model, policy, trace, measure), steps=8 if name == "forecast of 8" else 10, batch=1, labels=(1,)
        )
    return found


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("full", {"computed"}),
        ("fora", {"computed", "reused"}),
        ("goc", {"computed", "reused", "corrected"}),
        ("duca", {"computed", "reused", "partial"}),
        ("forecast", {"computed", "forecast"}),
    ],
)
def test_every_policy_is_drawn_and_told(inspect, output, traces, name, kinds):
    result = inspect(traces[name])
    picture, text, small = result.args
    assert picture.shape[2] == 1155
    assert small.shape[2] == 800
    assert {kind for step in result.ui["priorcache"][0]["steps"] for kind in step["kinds"]} == kinds
    assert all(kind in text for kind in kinds - {"computed"})
    assert len(re.split(r"(?<=\.) (?=[A-Z])", text)) == 3
    assert output.names() == []


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (ToCa(), "ToCa (auto, random) chose ToCa N=3 r=0.07 (dit, random): of all presets it knows most branches"),
        (GOC(FORA(4, "aligned")), "GOC 0.8 (used) on FORA N=4 (aligned) corrects 3 steps in a row, each by the "),
    ],
    ids=["preset", "three in a row"],
)
def test_what_a_policy_had_to_say_beforehand_is_told(host, inspect, policy, said):
    trace = Trace()
    host.sample(host.attach(host.model(), policy, trace, "errors"), steps=10, batch=1, labels=(1,))
    text = inspect(trace).args[1]
    assert said in text
    assert len(re.split(r"(?<=\.) (?=[A-Z])", text)) == 3


def test_why_nothing_was_skipped(inspect, traces):
    text = inspect(traces["forecast of 8"]).args[1]
    assert "Nothing was skipped: a schedule of 8 steps has none to spare" in text
    assert "the smallest change from one evaluation to the next was" in text


@pytest.mark.parametrize(("theme", "paper", "preview"), [("light", LIGHT, "in full"), ("dark", DARK, "at a glance")])
def test_themes_and_previews(inspect, traces, tmp_path, theme, paper, preview):
    result = inspect(traces["fora"], theme=theme, preview=preview)
    for image in (result.args[0], result.args[2]):
        torch.testing.assert_close(image[0, 0, 0], torch.tensor(paper), atol=1e-6, rtol=0)
    (shown,) = result.ui["images"]
    assert Image.open(tmp_path / "temp" / shown["filename"]).width == (800 if preview == "at a glance" else 1155)


def test_two_traces_are_compared_first_and_the_later_one_is_drawn_as_well(inspect, traces):
    picture, text, small = inspect(traces["goc"], before=traces["fora"]).args
    assert len(picture) == len(small) == 2
    assert text.startswith("After (GOC 0.8 (used) on FORA N=2 (aligned)) took")
    assert "The true error of what was not computed went from" in text


def test_a_comparison_without_runs_says_what_to_connect(inspect, traces):
    for a, b in ((traces["fora"], Trace()), (Trace(), traces["fora"])):
        picture, text, _ = inspect(a, before=b).args
        assert len(picture) == 1
        assert "connect before_latent" in text


def test_a_second_trace_alone_is_nothing_to_inspect(node, inspect, traces):
    assert inspect(before=traces["fora"]).args[1] == node.NOTHING


@pytest.fixture(scope="module")
def prior(host):
    from priorcache.nodes.calibrate import PriorCacheCalibrate

    label, null = (host.dit.conditioning(torch.tensor([n])) for n in (1, -1))
    with torch.inference_mode():
        made = PriorCacheCalibrate.execute(
            host.model(),
            label,
            null,
            {"samples": torch.zeros(1, 3, 16, 16)},
            5,
            1,
            10,
            1.5,
            "euler",
            "normal",
            1.0,
            2,
            False,
        ).args[0]
    return made.planned([Plan("Forecast", {"computed": [0, 1, 3, 5, 7]}, 10, 5, 0.02, 0.03, 1)])


@pytest.fixture
def blank(monkeypatch):
    """Pictures of a run that are quickly drawn, for who looks at files alone."""
    from priorcache.plots import style, trace

    for name in ("draw", "glance"):
        monkeypatch.setattr(trace, name, lambda *_, **__: trace.empty("blank", style.LIGHT))


class TestFiles:
    def test_everything_that_was_asked_for_is_written_and_named(self, inspect, output, traces, prior):
        text = inspect(traces["goc"], prior=prior, before=traces["fora"], export="PNG, CSV and JSON").args[1]
        assert output.names() == [
            f"PriorCache/inspect_00001_{name}"
            for name in (
                "all.json", "comparison.png", "comparison_branches.csv", "comparison_steps.csv", "plans.csv", "plans.png",
                "prior.csv", "prior.png", "trace.png", "trace_branches.csv", "trace_steps.csv",
            )
        ]  # fmt: skip
        assert all(name in text for name in output.names())
        folder = output.folder / "PriorCache"
        assert Image.open(folder / "inspect_00001_trace.png").width == 2100
        steps = list(csv.DictReader((folder / "inspect_00001_trace_steps.csv").open()))
        assert [float(row["computed"]) for row in steps] == [1, 0] * 5
        told = json.loads((folder / "inspect_00001_all.json").read_text())
        assert set(told) == {"summary", "runs", "before", "prior"}
        assert told["before"][0]["policy"] == "FORA N=2 (aligned)"

    @pytest.mark.parametrize(("kind", "count"), [("PNG", 1), ("CSV", 2), ("JSON", 1)])
    def test_each_kind_alone(self, inspect, output, traces, blank, kind, count):
        inspect(traces["fora"], export=kind)
        assert len(output.names()) == count
        assert all(name.endswith(kind.lower()) for name in output.names())

    def test_nothing_is_overwritten(self, inspect, output, traces, blank):
        for _ in range(2):
            inspect(traces["fora"], export="JSON", filename_prefix="mine")
        assert output.names() == ["mine_00001_all.json", "mine_00002_all.json"]

    def test_no_name_leaves_the_output_folder(self, inspect, output, traces, tmp_path):
        with pytest.raises(Exception, match="outside the output folder"):
            inspect(traces["fora"], export="JSON", filename_prefix="../up")
        with pytest.raises(ValueError, match="filename_prefix is empty"):
            inspect(traces["fora"], export="JSON", filename_prefix=" ")
        assert output.names() == []
        assert not list(tmp_path.glob("up*"))

    def test_without_anything_connected_the_reason_is_written(self, node, inspect, output):
        inspect(export="JSON")
        assert json.loads((output.folder / "PriorCache" / "inspect_00001_all.json").read_text()) == {
            "summary": node.NOTHING
        }


def test_a_prior_is_drawn_with_its_plans_and_beside_a_trace_as_what_it_expects(inspect, prior, traces):
    picture, text, _ = inspect(prior=prior).args
    assert len(picture) == 2
    assert "1 plan, judged on 1 pictures" in text
    assert len(inspect(traces["fora"], prior=prior).args[0]) == 3


def test_pictures_of_different_size_are_padded_with_paper(node):
    import numpy as np

    out = node._batch([np.zeros((4, 6, 3), np.float32), np.zeros((8, 2, 3), np.float32)], "#1F2023")
    assert out.shape == (2, 8, 6, 3)
    torch.testing.assert_close(out[0, 7, 0], torch.tensor(DARK))
    assert out[0, 3, 5, 0] == 0
