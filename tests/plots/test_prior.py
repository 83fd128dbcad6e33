"""Figures and sentences of priors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import NAN, has, outside, picture, prior, words
from priorcache.plots import prior as plot
from priorcache.plots.style import LIGHT, THEMES
from priorcache.priors.plan import Plan
from priorcache.priors.prior import Prior, PriorError

THEME = pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
FIGURE = pytest.mark.parametrize("draw", [plot.draw, plot.glance], ids=["full", "glance"])


@THEME
@FIGURE
def test_a_prior_is_a_picture(draw, theme):
    figure = draw(prior(), theme)
    image = picture(figure)
    assert image.shape[0] > 500
    assert has(image, theme.estimated)
    assert has(image, theme.true)
    assert {"1 back", "2 back"} <= set(words(figure))
    assert outside(figure) == []


@FIGURE
def test_dollar_signs_in_a_name_are_no_formula(draw):
    made = prior()
    shown = replace(
        made,
        subject=replace(made.subject, sampler=r"$\frac{$", scheduler="$x$"),
        sites=tuple(name.replace("attn", "$a$") for name in made.sites),
    )
    assert any("$x$" in text for text in words(draw(shown)))
    assert picture(draw(shown)).shape[0] > 100


def test_it_has_a_map_per_kind_of_branch_and_the_likeness_of_outputs():
    found = words(plot.draw(prior()))
    assert {"Attention", "MLP", "1 - cosine of outputs, positive", "1 - cosine of outputs, negative"} <= set(found)


@FIGURE
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
    ids=str,
)
def test_a_prior_of_any_size_is_drawn_and_told(draw, sizes):
    p = prior(**sizes)
    picture(draw(p))
    what = f"{len(p.sites)} branches" if p.sites else "the network's output alone"
    assert f"8 pictures, {what}" in plot.summary(p)


@FIGURE
def test_without_branches_the_networks_own_output_is_drawn_and_told(draw):
    p = prior(sites=0)
    gram = p.tables["gram/positive"]
    gram[:] = torch.eye(len(gram), dtype=gram.dtype) * torch.arange(1, len(gram) + 1).to(gram)
    errors = p.output_error(1)[1:]
    figure = draw(p)
    assert {"1 back", "2 back"} <= set(words(figure))
    assert outside(figure) == []
    assert f"costs {errors.mean():.3f} on average" in plot.summary(p)
    assert f"({errors.max():.3f})." in plot.summary(p)
    del p.tables["gram/positive"]
    picture(draw(p))
    assert "on average" not in plot.summary(p)


@FIGURE
def test_features_that_never_move_are_drawn(draw):
    still = prior()
    still.tables["difference"][~still.tables["difference"].isnan()] = 0.0
    picture(draw(still))
    assert "costs 0.000 on average" in plot.summary(still)


@FIGURE
def test_branches_that_were_never_met_twice_are_drawn_and_told(draw):
    p = prior()
    p.tables["difference"][:] = NAN
    picture(draw(p))
    assert "8 pictures" in plot.summary(p)


def test_what_is_unknown_is_no_small_error():
    assert has(picture(plot.draw(prior())), LIGHT.empty)  # the first evaluation, in the last map as in all


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_a_file_of_less_precision_is_refused_or_drawn_and_told(tmp_path, kind):
    p = prior()
    p.tables.update({k: v.to(kind) for k, v in p.tables.items()})
    try:
        loaded = Prior.load(p.save(tmp_path / "a.safetensors"))
    except PriorError:
        return
    picture(plot.draw(loaded))
    assert "on average" in plot.summary(loaded)


def test_the_summary_has_its_numbers():
    p = prior(evaluations=4, sites=2, gaps=1, grams=0)
    p.tables["difference"][0, 1:] = torch.tensor([[0.04, 0.16], [0.01, 0.01], [0.25, 0.81]])  # roots: errors
    said = plot.summary(p)
    assert "Prior of DiT (EPS): heun, karras, 4 steps, cfg 4.5; 8 pictures, 2 branches, 0 KiB." in said
    assert "costs 0.367 on average, least at step 2 (0.100), most at step 3 (0.700)" in said
    assert "the branch that moves most is blocks.0.mlp, step 3 (0.900)." in said
    assert "Try FORA Policy from start 0.50 to end 0.75, where reuse costs 0.100" in said


def test_a_prior_with_plans_leads_to_them():
    plans = [Plan("Forecast", {}, 6, 3, 0.1, 0.2, 4)]
    assert plot.summary(prior().planned(plans)).endswith("Try Plan Policy, for which this prior holds plans.")


def test_the_figures_of_a_prior():
    p = prior(evaluations=4, sites=2, gaps=1, grams=0)
    p.tables["difference"][0, 1:] = torch.tensor([[0.04, 0.16], [0.01, 0.01], [0.25, 0.81]])
    assert plot.figures(p) == [("0.367", "error, 1 step back"), ("step 2", "moves least"), ("step 3", "moves most")]
    assert plot.figures(prior(sites=0, grams=0)) == []
    assert np.isnan(prior().reuse_error(1)[0]).all()
