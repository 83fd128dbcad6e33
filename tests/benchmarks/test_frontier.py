"""The comparison itself: baselines as published, figures by hand."""

import json
import math
from itertools import pairwise

import pytest
import torch
from priorcache.benchmarks.baselines import Spectrum, growing, grown, spectrum_node
from priorcache.benchmarks.frontier import Sampled, measured, settings
from priorcache.benchmarks.standings import Setting
from priorcache.cache_core.policies import Forecast
from priorcache.cache_core.sites import MODEL, STACK, Action, Schedule, Step


def at(index, total):
    return Step(index, total, index / total, 0.0)


def test_spectrum_without_ridge_is_exact_for_polynomials_of_its_degree():
    weights = Spectrum(degree=2, ridge=1e-12, mix=1.0).weights([9, 6, 3, 0], at(14, 20))
    assert sum(w * (t * t - 3 * t) for w, t in zip(weights, [9, 6, 3, 0], strict=True)) == pytest.approx(14 * 14 - 42)


def test_spectrum_without_regression_is_a_line():
    assert Spectrum(mix=0.0).weights([6, 4, 1], at(7, 20)) == pytest.approx([1.5, -0.5, 0.0])
    assert Spectrum(mix=0.0).weights([6], at(7, 20)) == [1.0]


# What the published code made of features that are 1 at one step and 0 at the others, in 32 bits.

PUBLISHED = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46)
AGGRESSIVE = (0, 1, 2, 3, 4, 6, 11, 19, 30, 44)
NODE = (0, 1, 2, 4, 6, 9, 13, 18)


def before(step, computed):
    return [i for i in computed if i < step][::-1]


@pytest.mark.parametrize(
    ("step", "mix", "weights"),
    [
        (5, 0.5, [1.30871, -0.29208, 0.10031, -0.01375, -0.13384]),
        (19, 0.5, [1.51293, -0.34929, -0.04374, -0.11223, -0.11504, -0.08702, -0.03669, 0.03803, 0.1393]),
        (19, 1.0, [1.02586, 0.30143, -0.08747, -0.22445, -0.23008, -0.17404, -0.07338, 0.07606, 0.2786]),
        (
            49,
            0.5,
            [
                *(1.43326, -0.50463, -0.18444, 0.07506, 0.17805, 0.12714, 0.01127),
                *(-0.07284, -0.10248, -0.09118, -0.06409, -0.01911, 0.04662, 0.13616),
            ],
        ),
    ],
)
def test_spectrum_weighs_as_its_authors(step, mix, weights):
    """hanjq17/Spectrum at f7b7841, 50 steps."""
    assert Spectrum(mix=mix).weights(before(step, PUBLISHED), at(step, 50)) == pytest.approx(weights, abs=1e-5)


@pytest.mark.parametrize(
    ("step", "weights"),
    [
        (3, [1.94674, -0.93972, -0.01362]),
        (11, [1.5854, -0.60428, -0.03311, 0.01666, 0.02257, -0.01037]),
        (19, [1.2, -0.2, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_spectrum_weighs_as_its_comfyui_node(step, weights):
    """judian17/ComfyUI-Spectrum at fb1ca58, 20 steps, as it is put on the canvas."""
    policy = spectrum_node(20, 8)
    assert policy.computed == NODE
    assert policy.weights(before(step, NODE), at(step, 20)) == pytest.approx(weights, abs=1e-5)


def test_spectrum_computes_the_published_steps():
    assert growing(50, 14) == grown(50, 0.75) == PUBLISHED
    assert grown(50, 3.0) == AGGRESSIVE
    assert growing(28, 11) == (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25)


def test_spectrum_keeps_the_hidden_state():
    assert Spectrum().serves(STACK)
    assert spectrum_node(20, 8).serves(STACK)


def test_spectrum_computes_more_at_first_and_less_and_less():
    computed = growing(50, 10)
    gaps = [b - a for a, b in pairwise(computed)]
    assert computed[:5] == (0, 1, 2, 3, 4)
    assert len(computed) <= 10
    assert gaps == sorted(gaps)


@pytest.mark.parametrize(("total", "count"), [(50, 25), (50, 20), (50, 15), (50, 12), (28, 14), (29, 11), (20, 8)])
def test_spectrum_computes_as_many_as_it_is_compared_at_wherever_a_rate_gives_that(total, count):
    computed = growing(total, count)
    assert count - 1 <= len(computed) <= count
    assert len(growing(50, 25)) == 25


@pytest.mark.parametrize("count", [10, 6, 5])
def test_every_method_computes_as_many_steps_as_it_is_compared_at(count):
    schedule = Schedule(20, tuple(range(20, -1, -1)), "euler", "EPS")
    for name, policy in settings(20, count).items():
        ready = policy.prepared(schedule)
        steps = [Step(i, 20, i / 20, 20.0 - i) for i in range(20)]
        computed = sum(ready.decide(step, MODEL) is Action.COMPUTE for step in steps)
        assert computed == count or ("Spectrum" in name and count - 1 <= computed <= count), name


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
        assert "## On the clock" in frontier.DOC.read_text()
        again, _ = run("--again", "Forecast (ours)", "Plan (ours)")
        anew = {point["method"]: point for point in again["points"]}
        for method in points:
            assert anew[method]["error"] == pytest.approx(points[method]["error"], rel=1e-4)
        assert Setting.parsed(again).whole
        beside, _ = run("--again", "Forecast (ours)", "--shared")
        assert not Setting.parsed(beside).whole

    def test_what_was_not_measured_in_one_go_is_measured_whole_with_the_plans_that_were_found(
        self, frontier, run, monkeypatch
    ):
        before, _ = run("--shared")
        assert not Setting.parsed(before).whole
        monkeypatch.setattr(frontier, "search_plans", None)  # nothing is searched again
        after, _ = run("--anew")
        assert Setting.parsed(after).whole
        assert after["about"]["plans"] == before["about"]["plans"]
        assert [p["method"] for p in after["points"]] == [p["method"] for p in before["points"]]
        for point, earlier in zip(after["points"], before["points"], strict=True):
            assert point["error"] == pytest.approx(earlier["error"], rel=1e-4)
        again, said = run("--anew")
        assert "measured already" in said
        assert again == after

    def test_what_is_known_is_shown_and_measured_again_where_that_is_asked_for(self, frontier, run, monkeypatch):
        asked, original = [], frontier.Bench.sample
        monkeypatch.setattr(
            frontier.Bench, "sample", lambda *given, **more: asked.append(given) or original(*given, **more)
        )
        before, _ = run()
        first = len(asked)
        said = run()[1]
        assert "measured already" in said
        assert "| Plan (ours) |" in said
        assert len(asked) == first
        after, said = run("--repeat")
        assert "measured already" not in said
        assert len(asked) == 2 * first
        assert [p["method"] for p in after["points"]] == [p["method"] for p in before["points"]]

    def test_plans_are_searched_and_judged_by_other_pairs_than_are_told(self, frontier, run, monkeypatch):
        seen, original = {}, frontier.Bench.sample

        def watched(bench, *rest, **more):
            seen.setdefault(id(bench), {pair[3] for pair in bench.batches})
            return original(bench, *rest, **more)

        monkeypatch.setattr(frontier.Bench, "sample", watched)
        run()
        told, judged, searched = sorted(seen.values(), key=min, reverse=True)
        assert (min(told), min(judged), min(searched)) == (5000, 300, 100)
        assert not told & (searched | judged)
        assert not searched & judged

    @pytest.mark.parametrize(
        ("options", "more"),
        [
            ((), ""),
            (("--pairs", "12"), "-pairs12"),
            (("--scheduler", "karras"), "-schedulerkarras"),
            (("--fractions", ".5", ".2"), "-counts10+4"),
        ],
    )
    def test_what_is_measured_in_another_way_does_not_take_the_place_of_the_usual(self, frontier, options, more):
        asked, usual = frontier.parsed([*options]), frontier.parsed([])
        assert frontier.stem(asked, "dit", "euler", 20, 1.5) == f"dit-euler-20-1.5{more}"
        about = {"model": "dit", "steps": 20, "machine": "here"} | frontier.way(asked, "dit", 20)
        assert frontier.measured_so(asked, about)
        assert frontier.measured_so(usual, about) == (not more)

    def test_other_weights_are_another_model(self, frontier):
        about = {"model": "dit", "steps": 20} | frontier.way(frontier.parsed([]), "dit", 20)
        other = frontier.parsed(["--model", "dit", "--file", __file__])
        assert not frontier.measured_so(other, about)
        named = about | frontier.way(other, "dit", 20)
        assert frontier.measured_so(other, named)
        assert not frontier.measured_so(frontier.parsed([]), named)
