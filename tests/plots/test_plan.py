"""Figures and sentences of plans."""

import pytest
from drawn import has, outside, picture, words
from priorcache.plots import plan as plot
from priorcache.plots.style import THEMES, pixels
from priorcache.priors.plan import Plan

PLANS = tuple(
    Plan("Forecast", {"computed": list(range(0, 12, 12 // n))}, 12, n, 0.02 * 6 / n, 0.03 * 6 / n, 8) for n in (6, 4, 3)
)
THEME = pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)


@THEME
def test_the_curve_the_strips_and_the_chosen_plan_are_drawn(theme):
    alone = picture(plot.draw(PLANS, theme=theme))
    figure = plot.draw(PLANS, PLANS[1], [0.0, 0.02, 0.03] * 4, theme)
    chosen = picture(figure)
    assert chosen.shape[0] > alone.shape[0]
    assert not has(alone, theme.true)
    assert all(has(chosen, c) for c in (theme.true, theme.estimated, theme.kinds["computed"], theme.kinds["forecast"]))
    assert {"chosen", "planned", "evenly spread", "2.00x", "3.00x", "4.00x"} <= set(words(figure))
    assert outside(figure) == []


@THEME
@pytest.mark.parametrize("chosen", [None, PLANS[0]])
def test_at_a_glance_it_fits_a_node(theme, chosen):
    figure = plot.glance(PLANS, chosen, theme)
    assert picture(figure).shape[1] == 800
    assert outside(figure) == []


@pytest.mark.parametrize("draw", [plot.draw, plot.glance], ids=["full", "glance"])
@pytest.mark.parametrize(
    "plans",
    [
        [],
        [Plan("Forecast", {}, 12, 12, 0.0, 0.0, 1)],
        [Plan("Forecast", {}, 250, 99, 0.1, 0.1, 1)],
        [Plan("Forecast", {"computed": 7}, 12, 6, 0.1, 0.1, 1)],
        [Plan("Forecast", {"computed": [[0], 2]}, 12, 6, 0.1, 0.1, 1)],
    ],
)
def test_few_and_strange_plans_are_drawn(draw, plans):
    assert pixels(draw(plans, plans[0] if plans else None)).std() > 0.02
    assert plot.summary(plans, plans[0] if plans else None)


def test_sentences():
    assert "6 of 12 steps (2.00x): 0.020, evenly spread 0.030" in plot.summary(PLANS)
    assert plot.summary(PLANS).endswith("there planning takes 33% off the error of evenly spread steps.")
    vain = [Plan("Forecast", {}, 12, 6, 0.1, 0.1, 8)]
    assert plot.summary(vain).endswith("try more samplings in Search Plans.")
    assert plot.summary([]).startswith("0 plans")
    assert plot.summary(PLANS, PLANS[2]).endswith("Computed: 0, 4, 8.")
