"""Figures of sampling runs: the right size, not blank, and no run that cannot be drawn."""

import numpy as np
import pytest
import torch
from drawn import NAN, SITES, compute, has, outside, picture, prior, trace, words
from priorcache.cache_core.policies import Full
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, STACK, Action, Site
from priorcache.cache_core.trace import KINDS, Row, RunTrace, Trace
from priorcache.plots import trace as plot
from priorcache.plots.panels import Grid
from priorcache.plots.style import DARK, LIGHT, THEMES, pixels

THEME = pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
FIGURE = pytest.mark.parametrize("draw", [plot.draw, plot.glance], ids=["full", "glance"])


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


@THEME
def test_a_run_is_a_picture_in_full(theme):
    figure = plot.draw([trace()], theme=theme)
    image = picture(figure)
    assert image.shape[0] > 600
    assert image.shape[1] > 1000
    assert [kind for kind in KINDS if has(image, theme.kinds[kind])] == ["computed", "reused"]
    assert has(image, theme.paper)
    assert titles(figure) == [
        "Schedule", "Error of reuse: mean over branches, shaded up to the worst", "Attention", "MLP",
        "Time per evaluation", "Memory held by the cache",
    ]  # fmt: skip
    assert outside(figure) == []


@THEME
def test_at_a_glance_it_fits_a_node_at_twice_its_pixels(theme):
    figure = plot.glance([trace()], theme=theme)
    image = picture(figure)
    assert image.shape[1] == 800
    assert 600 < image.shape[0] < 900
    assert has(image, theme.kinds["reused"])
    assert titles(figure) == ["Schedule", "Error of reuse", "Time"]
    assert min(text.get_fontsize() for text in figure.findobj(type(figure.text(0, 0, "")))[:-1] if text.get_text()) >= 8
    assert outside(figure) == []


@FIGURE
@pytest.mark.parametrize("policy", ["EOC 0.5 on DuCa N=5 r=0.1 (hunyuan video, large values, faithful)", "A" * 300])
def test_a_long_name_stays_on_the_paper(draw, policy):
    run = trace(policy=policy)
    run.about = "dpmpp_2m_sde_gpu, 20 steps, 1 x 16 x 21 x 128 x 128, and so on and on" * 2
    assert outside(draw([run])) == []


@FIGURE
def test_no_run_is_a_picture_that_says_so(draw):
    figure = draw([])
    assert "No sampling run yet" in figure.texts[0].get_text()
    assert pixels(figure).min() < 0.5  # the text is there


def test_each_further_run_adds_the_height_of_one():
    one, two, three = (plot.draw([trace()] * n).get_size_inches() for n in (1, 2, 3))
    assert (two[1], three[1]) == pytest.approx((2 * one[1], 3 * one[1]), rel=1e-3)
    assert one[0] == two[0] == three[0]


def test_a_glance_at_many_runs_shows_the_last_ones_and_says_which():
    figure = plot.glance([trace()] * 5)
    assert len(figure.subfigs) == 3
    assert any("run 5 of 5" in text for text in words(figure)) is False  # equal runs are told by their place
    different = [trace(policy=f"FORA N={n}") for n in range(2, 7)]
    assert any("(run 5 of 5)" in text for text in words(plot.glance(different)))


def test_as_many_runs_as_a_trace_keeps_fit_the_canvas():
    figure = plot.draw([trace(1, sites=SITES[:1])] * Trace.limit)
    assert figure.get_size_inches()[1] * figure.dpi < 2**16  # matplotlib draws no larger picture
    assert any("52 earlier ones are not drawn" in text for text in words(figure))


@FIGURE
def test_a_run_that_measured_no_errors_says_so_and_is_drawn(draw):
    figure = draw([trace(error=lambda step, site: None)])
    assert any("errors were not measured" in text for text in words(figure))
    assert has(picture(figure), LIGHT.kinds["reused"])


def test_every_kind_has_its_colour_and_its_word_in_the_key():
    def decide(step: int, site: Site) -> Action:
        return (Action.COMPUTE, Action.PARTIAL, Action.REUSE, Action.REUSE, Action.REUSE)[step % 5]

    run = trace(10, decide, lambda *_: None)
    for i, row in enumerate(run.rows):
        run.rows[i] = row._replace(changed={3: "corrected", 4: "forecast"}.get(row.step % 5, ""))
    assert [list(shares) for shares in run.shares()] == [[kind] for kind in KINDS] * 2
    for theme in THEMES.values():
        figure = plot.draw([run], theme=theme)
        image = picture(figure)
        assert all(has(image, colour) for colour in theme.kinds.values())
        assert all(has(image, theme.tint(kind)) for kind in KINDS[1:])
        assert set(KINDS) <= set(words(figure))


def test_a_key_of_many_words_pushes_nothing_aside():
    """Every kind, with a true error in the first half and without one in the second."""

    def decide(step: int, site: Site) -> Action:
        return (Action.COMPUTE, Action.PARTIAL, Action.REUSE, Action.REUSE, Action.REUSE)[step % 5]

    run = trace(10, decide)
    for i, row in enumerate(run.rows):
        changed = {3: "corrected", 4: "forecast"}.get(row.step % 5, "")
        run.rows[i] = row._replace(changed=changed, error=row.error if row.step < 6 else None)
    figure = plot.draw([run])
    assert {f"{kind}, {what}" for kind in KINDS[1:] for what in ("true error", "error unknown")} <= set(words(figure))
    assert outside(figure) == []
    usual = plot.draw([trace(10, measure="truth")])
    assert outside(usual) == []
    widths = [max(axes.get_position().width for axes in drawn.axes) for drawn in (figure, usual)]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)


def test_tokens_computed_and_blocks_skipped_are_told_apart():
    """Steps in turn: all computed, MLPs of some tokens, all blocks skipped, which draws every branch as reused."""

    def decide(step: int, site: Site) -> Action:
        some = Action.PARTIAL if site.branch == "mlp" else Action.REUSE
        return (Action.COMPUTE, some, Action.REUSE)[step % 3]

    run = trace(decide=decide, error=lambda *_: None)
    run.rows += [Row(step, STACK, Action.REUSE if step % 3 == 2 else Action.COMPUTE, None) for step in range(6)]
    assert [set(shares) for shares in run.shares()] == [{"computed"}, {"partial", "reused"}, {"reused"}] * 2
    figure = plot.draw([run])
    assert {"All blocks", "partial, error unknown", "reused, error unknown"} <= set(words(figure))
    assert "partial, error unknown" not in words(plot.draw([trace(error=lambda *_: None)]))


def test_true_errors_are_dots_on_the_scale_and_a_curve_of_their_own():
    figure = plot.draw([trace(changed="corrected", measure="truth")])
    assert {"estimated", "true", "corrected, true error"} <= set(words(figure))
    (attention,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "Attention")
    assert sum(len(line.get_xdata()) for line in attention.lines) == 3 * 3  # blocks, reused evaluations
    assert "true" not in words(plot.draw([trace(error=lambda t, s: None if t % 2 else 0.1)]))


def test_dots_too_small_to_see_are_left_out():
    figure = plot.draw([trace(400, measure="truth")])
    (attention,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "Attention")
    assert not list(attention.lines)
    assert "reused, true error" not in words(figure)


def test_a_curve_runs_through_its_own_steps_only():
    figure = plot.draw([trace(measure="truth")])
    (errors,) = (axes for axes in figure.axes if axes.get_title(loc="left").startswith("Error"))
    found = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in errors.lines}
    assert found["estimated"] == ([0, 2, 4], pytest.approx([0.02, 0.04, 0.06]))
    assert found["true"] == ([1, 3, 5], pytest.approx([0.03, 0.05, 0.07]))


def test_a_prior_of_as_many_evaluations_says_what_it_expects_of_reused_steps():
    own, run = prior(), trace(error=lambda step, site: 0.2 if step % 2 == 0 else None)
    expected = Grid.of(run).expected(own)
    assert np.isnan(expected[:, ::2]).all()
    assert expected[0, 3] == pytest.approx(own.reuse_error(1)[3, 0].item())
    assert np.isnan(expected[4:]).all()  # branches that it does not know
    assert "expected by the prior" in words(plot.draw([run], prior=own))
    assert Grid.of(run).expected(prior(evaluations=7)) is None
    assert "expected by the prior" not in words(plot.draw([run], prior=prior(evaluations=7)))


def test_a_prior_is_asked_at_the_distance_of_reuse():
    own = prior(gaps=2)
    run = trace(decide=lambda step, site: Action.COMPUTE if step % 4 == 0 else Action.REUSE)
    expected = Grid.of(run).expected(own)
    assert expected[1, 2] == pytest.approx(own.reuse_error(2)[2, 1].item())
    assert np.isnan(expected[:, 3]).all()  # three back was not measured


def test_maps_are_apart_by_kind_of_branch_in_the_order_of_blocks():
    sites = [Site(f"double.{i}.{b}", i, 4) for i in (1, 0) for b in ("attn", "txt_mlp")] + [
        Site("single.0.single", 2, 4)
    ]
    table = Grid.of(trace(sites=sites))
    assert table.by_branch() == {"attn": [2, 0], "txt_mlp": [3, 1], "single": [4]}
    figure = plot.draw([trace(sites=sites)])
    assert [t for t in titles(figure) if t in ("Attention", "Text MLP", "Single-stream blocks")] == [
        "Attention", "Text MLP", "Single-stream blocks",
    ]  # fmt: skip


def test_a_map_without_a_scale_keeps_what_is_unknown_apart_from_no_error():
    image = picture(plot.draw([trace(error=lambda step, site: None)]))
    assert has(image, LIGHT.empty)
    image = picture(plot.draw([trace(error=lambda step, site: None)], theme=DARK))
    assert has(image, DARK.empty)


def test_one_hiccup_does_not_flatten_the_times():
    run = trace(20)
    run.moments[7] = run.moments[7]._replace(seconds=60.0)
    figure = plot.draw([run])
    (time,) = (axes for axes in figure.axes if axes.get_title(loc="left").startswith("Time"))
    assert time.get_ylim()[1] < 2000
    assert "up to 60000 ms" in words(figure)


def test_many_hiccups_are_marked_and_the_longest_is_told():
    run = trace(40)
    for step, seconds in ((3, 5.0), (4, 7.0), (5, 6.0)):
        run.moments[step] = run.moments[step]._replace(seconds=seconds)
    figure = plot.draw([run])
    assert "up to 7000 ms" in words(figure)
    assert outside(figure) == []


def test_the_scale_beside_a_single_row_has_its_ends_only():
    figure = plot.draw([trace(sites=[MODEL])])
    scale = figure.axes[-3]
    assert [text.get_text() for text in scale.get_yticklabels()] == ["0.01", "0.06"]
    assert scale.get_ylabel() == ""
    assert "Error of reuse" in titles(figure)
    assert outside(figure) == []


def test_times_of_a_run_in_shadow_are_compared_with_nothing():
    assert any("a full one" in text for text in words(plot.draw([trace()])))
    assert not any("a full one" in text for text in words(plot.draw([trace(measure="truth")])))


def test_expected_memory_is_drawn_beside_what_was_held():
    run = trace()
    run.expected_bytes, run.store = 5 * 2**20, "8 bit"
    figure = plot.draw([run])
    assert "expected: 5.0 MiB" in words(figure)
    assert "Memory held by the cache, in 8 bits" in titles(figure)


@FIGURE
def test_a_run_that_only_computes_shows_nothing_reused(draw):
    run = trace(decide=compute, error=lambda step, site: None)
    assert run.shares() == [{"computed": 1.0}] * 6
    image = picture(draw([run]))
    assert has(image, LIGHT.kinds["computed"])
    assert not has(image, LIGHT.kinds["reused"])


def test_an_evaluation_of_both_actions_has_a_share_of_either():
    def decide(step, site):
        return Action.REUSE if step == 1 or (step == 2 and site.branch == "mlp") else Action.COMPUTE

    assert trace(4, decide).shares() == [
        {"computed": 1.0},
        {"reused": 1.0},
        {"computed": 0.5, "reused": 0.5},
        {"computed": 1.0},
    ]


def test_errors_change_the_picture():
    one, other = (picture(plot.draw([trace(error=lambda step, site, k=k: k * (step + 1))])) for k in (0.01, 0.9))
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


@FIGURE
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, NAN, float("inf")])
def test_strange_errors_are_drawn(draw, value):
    run = trace(error=lambda step, site: value)
    picture(draw([run]))
    assert "6 evaluations" in plot.summary(run)


@FIGURE
@pytest.mark.parametrize(
    "run",
    [
        trace(1000, sites=SITES[:2]),
        trace(1, sites=SITES[:1]),
        trace(4, sites=[Site(f"blocks.{i}.mlp", i, 80) for i in range(80)]),
        trace(5, sites=[MODEL]),
        trace(5, sites=[STACK], measure="truth"),
        RunTrace("FORA", 20),
    ],
    ids=["a thousand steps", "one", "eighty blocks", "whole network", "stack", "nothing"],
)
def test_small_and_large_runs_are_drawn(draw, run):
    picture(draw([run]))


@FIGURE
@pytest.mark.parametrize("ended", [0, 2])
def test_a_run_that_was_stopped_within_a_step_is_drawn(draw, ended):
    run = trace(4, complete=False)
    run.moments = run.moments[:ended]
    picture(draw([run]))
    assert "stopped early" in plot.about(run)


@FIGURE
def test_a_full_run_without_measuring_is_drawn(draw):
    """What Apply Cache with Full and measure off records: times, and not one decision."""
    run = CacheRun(Full(), 3)
    for t in range(3):
        with run.evaluation(3.0 - t, t / 3):
            run.next_forward([(0, "p")]).branch(SITES[0], torch.square, torch.ones(1))
    run.close(complete=True)
    picture(draw([run.trace]))
    if draw is plot.draw:
        assert "no branch was looked at in this run" in words(draw([run.trace]))


def test_the_figures_of_a_run():
    assert plot.figures(trace()) == [
        ("1.33x", "speed"), ("50%", "not computed"), ("0.050", "true branch error"), ("3.0 MiB", "cache"), ("1.80 s", "in the model"),
    ]  # fmt: skip
    assert plot.figures(trace(decide=compute))[:2] == [("0%", "not computed"), ("0.045", "estimated branch error")]
    assert ("0.040", "true error") in plot.figures(trace(sites=[MODEL]))
    assert ("1.33x", "speed") not in plot.figures(trace(measure="truth"))
