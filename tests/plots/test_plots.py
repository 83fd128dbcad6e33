"""Figures and sentences of traces and priors: the right size, not blank, and no run that cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from priorcache.cache_core.policies import Full
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import STACK, Action, Site, Step
from priorcache.cache_core.trace import Moment, Row, RunTrace, Trace, human_bytes
from priorcache.plots import plan as plan_plot
from priorcache.plots import prior as prior_plot
from priorcache.plots import trace as trace_plot
from priorcache.plots.style import log_norm, pixels, statistics_over_sites
from priorcache.priors.plan import Plan
from priorcache.priors.prior import Prior, PriorError, Subject

SITES = [Site(f"blocks.{i}.{branch}", i, 3) for i in range(3) for branch in ("attn", "mlp")]
NAN = float("nan")


def every_second(step: int, site: Site) -> Action:
    return Action.REUSE if step % 2 else Action.COMPUTE


def trace(
    evaluations: int = 6,
    decide: Callable[[int, Site], Action] = every_second,
    error: Callable[[int, Site], float | None] = lambda step, site: 0.01 * (step + site.block + 1),
    sites: list[Site] = SITES,
    complete: bool = True,
) -> RunTrace:
    """A finished run: 0.2 s for an evaluation with work skipped, 0.4 s for a full one, 3 MiB of cache."""
    run = RunTrace("FORA N=2 (published)", evaluations, about="euler, 1 x 4 x 8 x 8, cpu", complete=complete)
    run.rows = [Row(t, s, decide(t, s), error(t, s)) for t in range(evaluations) for s in sites]
    for t in range(evaluations):
        full = all(decide(t, s) is Action.COMPUTE for s in sites)
        run.moments.append(Moment(Step(t, evaluations, t / evaluations, 1.0), 0.4 if full else 0.2, 3 * 2**20))
    return run


def prior(evaluations: int = 6, sites: int = 4, gaps: int = 2, grams: int = 2) -> Prior:
    own = torch.Generator().manual_seed(0)
    difference = torch.rand(gaps, evaluations, sites, generator=own).double() + 0.1
    for gap in range(1, gaps + 1):
        difference[gap - 1, :gap] = NAN
    tables = {
        "sigmas": torch.arange(evaluations, 0, -1).double(),
        "power": torch.ones(evaluations, sites).double(),
        "difference": difference,
    }
    states = torch.randn(evaluations, 20, generator=own).double()
    tables |= {f"gram/{role}": states @ states.T / 20 for role in ("positive", "negative")[:grams]}
    names = tuple(s.name for s in SITES[:sites])
    return Prior(Subject("DiT", "00", "EPS", "heun", "karras", evaluations, 4.5), names, 8, tables)


def picture(figure) -> np.ndarray:
    """The drawn figure, after what every picture must be: (H, W, 3) float32 in [0, 1], and not blank."""
    image = pixels(figure)
    assert image.dtype == np.float32
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 <= image.min() < image.max() <= 1
    assert (image.std((0, 1)) > 0.01).all()
    return image


def has(image: np.ndarray, colour: str) -> bool:
    """Whether exactly this colour was painted somewhere."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32) / 255
    return bool((np.abs(image - wanted) < 1e-3).all(2).any())


# --- traces ---


def test_a_run_is_a_picture():
    image = picture(trace_plot.draw([trace()]))
    assert image.shape[0] > 600
    assert image.shape[1] > 600


def test_no_run_is_a_picture_that_says_so():
    figure = trace_plot.draw([])
    assert "No sampling run yet" in figure.texts[0].get_text()
    assert pixels(figure).min() < 0.5  # the text is there


def test_each_further_run_adds_the_height_of_one():
    one, two, three = (picture(trace_plot.draw([trace()] * n)).shape for n in (1, 2, 3))
    assert (two[0], three[0]) == (2 * one[0], 3 * one[0])
    assert one[1] == two[1] == three[1]


def test_as_many_runs_as_a_trace_keeps_fit_the_canvas():
    figure = trace_plot.draw([trace(1, sites=SITES[:1])] * Trace.limit)
    assert figure.get_size_inches()[1] * figure.dpi < 2**16  # matplotlib draws no larger picture


def test_a_run_that_measured_no_errors_says_so_and_is_drawn():
    figure = trace_plot.draw([trace(error=lambda step, site: None)])
    texts = [text.get_text() for axes in figure.subfigs[0].axes for text in axes.texts]
    assert any("errors were not measured" in text for text in texts)
    assert has(picture(figure), trace_plot.COLOURS["reuse"])


def test_tokens_computed_and_blocks_skipped_are_told_apart():
    """Steps in turn: all computed, MLPs of some tokens, all blocks skipped, which draws every branch as reused."""

    def decide(step: int, site: Site) -> Action:
        some = Action.PARTIAL if site.branch == "mlp" else Action.REUSE
        return (Action.COMPUTE, some, Action.REUSE)[step % 3]

    run = trace(decide=decide, error=lambda *_: None)
    run.rows += [Row(step, STACK, Action.REUSE if step % 3 == 2 else Action.COMPUTE, None) for step in range(6)]
    assert trace_plot.kinds(run) == ["compute", "mixed", "reuse"] * 2
    figure = trace_plot.draw([run])
    words = [text.get_text() for axes in figure.subfigs[0].axes if axes.legend_ for text in axes.legend_.get_texts()]
    assert {"reused", "some tokens computed"} <= set(words)
    map_axes = figure.subfigs[0].axes[1]
    of = {p.get_facecolor(): 0 for p in map_axes.patches}
    for patch in map_axes.patches:
        of[patch.get_facecolor()] += 1
    assert sorted(of.values()) == [
        2 * 3,
        2 * 3 + 2 * 3 + 2,
    ]  # MLPs; those skipped, with attention one stretch of two, STACK
    assert "some tokens" not in str(
        [t.get_text() for t in trace_plot.draw([trace()]).subfigs[0].axes[1].legend_.get_texts()]
    )


def test_a_run_that_only_computes_shows_nothing_reused():
    def compute(step, site):
        return Action.COMPUTE

    assert trace_plot.kinds(trace(decide=compute)) == ["compute"] * 6
    image = picture(trace_plot.draw([trace(decide=compute, error=lambda step, site: None)]))
    assert has(image, trace_plot.COLOURS["compute"])


def test_evaluations_with_both_actions_are_mixed():
    def decide(step, site):
        return Action.REUSE if step == 1 or (step == 2 and site.branch == "mlp") else Action.COMPUTE

    run = trace(4, decide)
    assert trace_plot.kinds(run) == ["compute", "reuse", "mixed", "compute"]
    image = picture(trace_plot.draw([run]))
    assert all(has(image, trace_plot.COLOURS[kind]) for kind in ("compute", "reuse", "mixed"))


def test_errors_change_the_picture():
    one, other = (picture(trace_plot.draw([trace(error=lambda step, site, k=k: k * (step + 1))])) for k in (0.01, 0.9))
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, NAN, float("inf")])
def test_strange_errors_are_drawn(value):
    run = trace(error=lambda step, site: value)
    picture(trace_plot.draw([run]))
    assert "6 evaluations" in trace_plot.summary(run)


def test_a_thousand_steps_are_drawn():
    picture(trace_plot.draw([trace(1000, sites=SITES[:2])]))


def test_one_step_and_one_branch_are_drawn():
    picture(trace_plot.draw([trace(1, sites=SITES[:1])]))


def test_eighty_branches_are_drawn():
    picture(trace_plot.draw([trace(4, sites=[Site(f"blocks.{i}.mlp", i, 80) for i in range(80)])]))


@pytest.mark.parametrize("ended", [0, 2])
def test_a_run_that_was_stopped_within_a_step_is_drawn(ended):
    run = trace(4, complete=False)
    run.moments = run.moments[:ended]
    picture(trace_plot.draw([run]))
    assert "stopped early" in trace_plot.title(run)
    assert trace_plot.summary(run).endswith("The run was stopped before its end.")


def test_a_full_run_without_measuring_is_drawn():
    """What Apply Cache with Full and measure off records: times, and not one decision."""
    run = CacheRun(Full(), 3)
    for t in range(3):
        with run.evaluation(3.0 - t, t / 3):
            run.next_forward([(0, "p")]).branch(SITES[0], torch.square, torch.ones(1))
    run.close(complete=True)
    assert "0 of 3 evaluations skipped work" in trace_plot.summary(run.trace)
    picture(trace_plot.draw([run.trace]))


def test_a_run_that_was_stopped_before_its_first_step_is_drawn():
    picture(trace_plot.draw([RunTrace("FORA", 20)]))


def test_the_summary_of_a_run_has_its_numbers():
    said = trace_plot.summary(trace())
    assert "FORA N=2 (published), euler, 1 x 4 x 8 x 8, cpu: 3 of 6 evaluations skipped work, 50.0% of all" in said
    assert "It took 1.80 s in the model, 1.33x faster" in said  # 6 x 0.4 s against 3 x 0.4 + 3 x 0.2
    assert "mean 0.045, worst 0.080 at blocks.2.attn, step 5 (reuse did cost)" in said
    assert "The cache held 3.0 MiB at most." in said
    assert "stopped" not in said


def test_the_summary_tells_what_reuse_would_have_cost():
    said = trace_plot.summary(trace(5))  # the worst error is that of step 4, which was computed
    assert "worst 0.070 at blocks.2.attn, step 4 (reuse would have cost)" in said


def test_the_summary_without_a_full_step_claims_no_speed():
    said = trace_plot.summary(trace(decide=lambda step, site: Action.REUSE))
    assert "It took 1.20 s in the model, with no full step to compare with." in said
    assert "faster" not in said


def test_the_summary_of_an_unmeasured_run_gives_no_error():
    assert "Relative error" not in trace_plot.summary(trace(error=lambda step, site: None))


def test_the_notes_of_a_run_are_said():
    run = trace()
    run.notes.append("FORA computed everything: too few steps.")
    assert trace_plot.summary(run).endswith("FORA computed everything: too few steps.")


def test_the_title_of_a_run_has_its_numbers():
    assert trace_plot.title(trace()) == (
        "FORA N=2 (published)   |   euler, 1 x 4 x 8 x 8, cpu\n"
        "50% of branches computed,  1.80 s in the model,  1.33x against its own full steps,  cache 3.0 MiB"
    )


# --- priors ---


def test_a_prior_is_a_picture():
    image = picture(prior_plot.draw(prior()))
    assert image.shape[0] > 600
    assert has(image, prior_plot.COLOURS["compute"])
    assert has(image, prior_plot.COLOURS["worst"])


@pytest.mark.parametrize(
    "sizes",
    [
        {"grams": 0},
        {"grams": 1},
        {"evaluations": 1},
        {"evaluations": 2, "gaps": 8},
        {"sites": 0},
        {"sites": 1, "gaps": 1},
        {"evaluations": 1000, "sites": 2, "grams": 1},
    ],
)
def test_a_prior_of_any_size_is_drawn_and_told(sizes):
    p = prior(**sizes)
    picture(prior_plot.draw(p))
    assert f"8 pictures, {len(p.sites)} branches" in prior_plot.summary(p)


def test_a_prior_of_features_that_never_move_is_drawn():
    still = prior()
    still.tables["difference"][~still.tables["difference"].isnan()] = 0.0
    picture(prior_plot.draw(still))
    assert "costs 0.000 on average" in prior_plot.summary(still)


def test_a_prior_of_branches_that_were_never_met_twice_is_drawn_and_told():
    p = prior()
    p.tables["difference"][:] = NAN
    picture(prior_plot.draw(p))
    assert "8 pictures" in prior_plot.summary(p)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_a_file_of_less_precision_is_refused_or_drawn_and_told(tmp_path, kind):
    p = prior()
    p.tables.update({k: v.to(kind) for k, v in p.tables.items()})
    try:
        loaded = Prior.load(p.save(tmp_path / "a.safetensors"))
    except PriorError:
        return
    picture(prior_plot.draw(loaded))
    assert "on average" in prior_plot.summary(loaded)


def test_the_summary_of_a_prior_has_its_numbers():
    p = prior(evaluations=4, sites=2, gaps=1, grams=0)
    p.tables["difference"][0, 1:] = torch.tensor([[0.04, 0.16], [0.01, 0.01], [0.25, 0.81]])  # roots: errors
    said = prior_plot.summary(p)
    assert "Prior of DiT (EPS): heun, karras, 4 steps, cfg 4.5; 8 pictures, 2 branches, 0 KiB." in said
    assert "costs 0.367 on average, least at step 2 (0.100), most at step 3 (0.700)" in said
    assert "The branch that moves most is blocks.0.mlp, step 3 (0.900)." in said


# --- style ---


def test_statistics_over_sites_leave_empty_columns_unknown():
    mean, worst = statistics_over_sites(np.array([[NAN, 1.0, 4.0], [NAN, 3.0, NAN]]))
    assert mean[1:].tolist() == [2.0, 4.0]
    assert worst[1:].tolist() == [3.0, 4.0]
    assert np.isnan([mean[0], worst[0]]).all()


def test_the_colour_scale_spans_the_positive_values_and_four_decades_at_most():
    assert (log_norm(np.array([NAN, 0.0, 0.5, 2.0])).vmin, log_norm(np.array([0.5, 2.0])).vmax) == (0.5, 2.0)
    assert log_norm(np.array([1e-9, 1.0])).vmin == 1e-4
    assert log_norm(np.array([NAN, 0.0])) is None
    assert log_norm(np.array([3.0])).vmax > 3.0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 KiB"), (5000, "5 KiB"), (3 * 2**19, "1.5 MiB"), (2**30 - 2**20, "1023.0 MiB"), (2**31, "2.00 GiB")],
)
def test_sizes_are_said_in_the_larger_unit(count, text):
    assert human_bytes(count) == text


class TestPlans:
    plans = tuple(
        Plan("Forecast", {"computed": list(range(0, 12, 12 // n))}, 12, n, 0.02 * 6 / n, 0.03 * 6 / n, 8)
        for n in (6, 4, 3)
    )

    def test_the_curve_the_strips_and_the_chosen_plan_are_drawn(self):
        alone = pixels(plan_plot.draw(self.plans))
        chosen = pixels(plan_plot.draw(self.plans, self.plans[1], [0.0, 0.02, 0.03] * 4))
        assert alone.std() > 0.05
        assert chosen.shape[0] > alone.shape[0]

    def test_one_plan_without_error_is_drawn(self):
        perfect = Plan("Forecast", {}, 12, 12, 0.0, 0.0, 1)
        assert pixels(plan_plot.draw([perfect], perfect)).std() > 0.02

    def test_sentences(self):
        assert "6 of 12 steps (2.00x): 0.020, evenly spread 0.030" in plan_plot.summary(self.plans)
        assert plan_plot.summary(self.plans, self.plans[2]).endswith("Computed: 0, 4, 8.")
