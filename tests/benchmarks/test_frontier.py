"""The comparison itself: baselines as published, figures by hand."""

import json
import math
from itertools import pairwise

import pytest
import torch
from priorcache.benchmarks.baselines import Spectrum, growing, spectrum_weights
from priorcache.benchmarks.frontier import Sampled, measured, settings
from priorcache.cache_core.policies import Forecast
from priorcache.cache_core.sites import MODEL, Action, Schedule, Step


def test_spectrum_without_ridge_is_exact_for_polynomials_of_its_degree():
    policy = Spectrum(degree=2, ridge=1e-12, mix=1.0)
    weights = spectrum_weights([9, 6, 3, 0], 14, 20, policy)
    assert sum(w * (t * t - 3 * t) for w, t in zip(weights, [9, 6, 3, 0], strict=True)) == pytest.approx(14 * 14 - 42)


def test_spectrum_without_regression_is_a_line():
    assert spectrum_weights([6, 4, 1], 7, 20, Spectrum(mix=0.0)) == pytest.approx([1.5, -0.5, 0.0])
    assert spectrum_weights([6], 7, 20, Spectrum(mix=0.0)) == [1.0]


def test_spectrum_computes_more_at_first_and_less_and_less():
    computed = growing(50, 10)
    gaps = [b - a for a, b in pairwise(computed)]
    assert computed[:5] == (0, 1, 2, 3, 4)
    assert len(computed) <= 10
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("count", [10, 6, 5])
def test_every_method_computes_as_many_steps_as_it_is_compared_at(count):
    schedule = Schedule(20, tuple(range(20, -1, -1)), "euler", "EPS")
    for name, policy in settings(20, count).items():
        ready = policy.prepared(schedule)
        steps = [Step(i, 20, i / 20, 20.0 - i) for i in range(20)]
        computed = sum(ready.decide(step, MODEL) is Action.COMPUTE for step in steps)
        assert computed == count or (name == "Spectrum" and count - 1 <= computed <= count), name


def test_error_and_psnr_by_hand():
    exact = torch.tensor([[0.0, 4.0, 3.0, 0.0]])
    point = measured("x", Sampled(exact + 0.1, 5.0, 1.0), exact)
    assert point.error == pytest.approx(0.2 / 5)
    assert point.psnr == pytest.approx(20 * math.log10(4 / 0.1), rel=1e-5)


def test_our_default_is_the_policy_of_the_node():
    assert settings(20, 8)["Forecast (ours)"] == Forecast(2.5)


@pytest.fixture
def frontier(comfy, monkeypatch, tmp_path):
    from priorcache.benchmarks import frontier

    monkeypatch.setattr(frontier, "DOC", tmp_path / "frontier.md")
    monkeypatch.setattr(frontier, "THRESHOLDS", (0.2,))
    return frontier


class TestCommand:
    FEW = ("--model", "dit", "--steps", "10", "--sampler", "euler", "--cfg", "1", "--fractions", ".5", "--pairs", "2")

    @pytest.fixture
    def run(self, frontier, tmp_path, capsys):
        def run(*more: str) -> tuple[dict, str]:
            frontier.main([*self.FEW, "--calibration", "4", "--samplings", "4", "--out", str(tmp_path / "kept"), *more])
            (file,) = (tmp_path / "kept").glob("*.json")
            return json.loads(file.read_text()), capsys.readouterr().out

        return run

    def test_every_method_is_measured_once_kept_and_measured_anew(self, frontier, run):
        report, _ = run()
        points = {point["method"]: point for point in report["points"]}
        assert {*settings(10, 5), "Plan (ours)", "fewer steps, euler", "all steps", "LazyCache 0.2"} <= set(points)
        assert points["all steps"]["error"] == 0
        assert 0 < points["Plan (ours)"]["error"] < points["reuse"]["error"]
        assert points["Forecast (ours)"]["evaluations"] == 5
        assert "measured already" in run("--write")[1]
        assert "| dit, euler, 10 steps, cfg 1 |" in frontier.DOC.read_text()
        again, _ = run("--again", "Forecast (ours)", "Plan (ours)")
        anew = {point["method"]: point for point in again["points"]}
        for method in points:
            assert anew[method]["error"] == pytest.approx(points[method]["error"], rel=1e-4)

    def test_other_means_do_not_take_the_place_of_the_usual_ones(self, frontier):
        usual, fewer = (frontier.parsed(["--pairs", pairs]) for pairs in ("64", "12"))
        assert frontier.stem(usual, "dit", "euler", 20, 1.5) == "dit-euler-20-1.5"
        assert frontier.stem(fewer, "dit", "euler", 20, 1.5) == "dit-euler-20-1.5-12pairs"
