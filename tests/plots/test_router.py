"""Pictures of routers: trained, published, with and without a curve."""

import numpy as np
import pytest
import torch
from drawn import has, outside, words
from priorcache.plots import router
from priorcache.plots.router import Point
from priorcache.plots.style import LIGHT, THEMES, pixels
from priorcache.priors.prior import Prior, Subject

NAN = float("nan")


def prior(gates: list[list[float]]) -> Prior:
    table = torch.tensor(gates, dtype=torch.float64)
    unknown = torch.full((1, *table.shape), NAN, dtype=torch.float64)
    tables = {
        "sigmas": torch.arange(len(table), 0, -1).double(),
        "power": unknown[0],
        "difference": unknown,
        "router": table,
    }
    sites = tuple(f"blocks.{i}.mlp" for i in range(table.shape[1]))
    return Prior(Subject("DiT", "", "EPS", "ddim", "normal", len(table), 1.5), sites, 1, tables)


GATES = [[NAN, NAN], [0.05, 0.9], [NAN, NAN], [0.2, 0.0]]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("points", [[], [Point("1e-6", 0.1, 0.01), Point("1e-5", 0.3, 0.04)]])
def test_draws_with_and_without_training(threshold, points):
    losses = [(1, 0.5 / i) for i in range(1, 60)] if points else []
    image = pixels(router.draw(prior(GATES), threshold, losses, points, [Point("FORA", 0.5, 0.1)] if points else []))
    assert image.shape[2] == 3
    assert (image.std((0, 1)) > 0.01).all()
    assert has(image, LIGHT.kinds["reused"])


@pytest.mark.parametrize("gates", [[[NAN, NAN]] * 4, [[NAN], [1.0]], [[NAN] * 60, [0.0] * 60] * 25])
@pytest.mark.parametrize("losses", [[], [(1, 0.0)], [(1, 0.3)] * 2])
def test_draws_what_is_empty_small_or_large(gates, losses):
    assert np.isfinite(pixels(router.draw(prior(gates), 0.1, losses))).all()
    assert np.isfinite(pixels(router.glance(prior(gates), 0.1))).all()


@pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
@pytest.mark.parametrize("draw", [router.draw, router.glance], ids=["full", "glance"])
def test_the_schedule_counts_the_reused_branches_of_every_step(draw, theme):
    figure = draw(prior(GATES), theme=theme)
    (schedule,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "Schedule")
    computed, reused = (np.array([bar.get_height() for bar in bars]) for bars in schedule.containers)
    np.testing.assert_allclose(reused, [0, 0.5, 0, 0.5])
    np.testing.assert_allclose(computed + reused, 1)
    assert "25%" in words(figure)
    assert outside(figure) == []
    assert has(pixels(figure), theme.empty)


def test_counts_gates_up_to_the_threshold():
    said = router.summary(prior(GATES), 0.1, [Point("1e-06", 0.25, 0.0123)], [Point("FORA N=2", 0.5, 0.1)])
    assert "2 of 8 branches reused (25.0%) at threshold 0.1; 4 have a gate." in said
    assert "Penalty 1e-06 removes 25.0% at a relative error of 0.012." in said
    assert "FORA N=2 removes 50.0% at 0.100." in said
    assert "3 of 8" in router.summary(prior(GATES), 0.2)


def test_what_to_try_next():
    assert router.summary(prior(GATES), 0.1).endswith(
        "Try threshold 0.2 to reuse about a tenth more, and Inspect with a trace for what it costs."
    )
    none = router.summary(prior([[NAN, NAN], [0.388, 0.9]]), 0.12)
    assert "Nothing would be reused, because the smallest gate is 0.39: try threshold 0.39 or more" in none
    assert "every branch that has a gate is reused" in router.summary(prior(GATES), 1.0)
    assert "Try Train Router" in router.summary(prior([[NAN, NAN]]), 0.1)
