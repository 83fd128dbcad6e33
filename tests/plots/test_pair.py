"""Two runs side by side."""

import numpy as np
import pytest
from drawn import SITES, compute, has, outside, picture, trace, words
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import RunTrace
from priorcache.plots import pair
from priorcache.plots.style import THEMES

FULL = trace(decide=compute, policy="Full (no caching)", measure="errors")
BEFORE = trace(measure="truth")
AFTER = trace(
    changed="corrected", measure="truth", policy="GOC 0.8 on FORA N=2", error=lambda step, site: 0.005 * (step + 1)
)
THEME = pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)


@THEME
@pytest.mark.parametrize("draw", [pair.draw, pair.glance], ids=["full", "glance"])
def test_both_are_drawn_with_one_key(theme, draw):
    figure = draw(BEFORE, AFTER, theme)
    image = picture(figure)
    assert all(has(image, theme.kinds[kind]) for kind in ("computed", "reused", "corrected"))
    assert {"Before: FORA N=2 (published)", "After: GOC 0.8 on FORA N=2", "before, true", "after, true"} <= set(
        words(figure)
    )
    assert outside(figure) == []


def test_maps_show_the_factor_by_which_errors_changed():
    ratio = pair._ratio(BEFORE, AFTER)
    assert ratio[0, 1] == pytest.approx(0.005 * 2 / 0.02)
    assert "error, after over before" in words(pair.draw(BEFORE, AFTER))


def test_a_cell_that_was_computed_in_one_of_them_only_is_not_compared():
    shifted = trace(decide=lambda step, site: Action.COMPUTE if step % 2 else Action.REUSE, measure="truth")
    assert np.isnan(pair._ratio(BEFORE, shifted)).all()
    assert "error, after over before" not in words(pair.draw(BEFORE, shifted))


@pytest.mark.parametrize(
    "other",
    [
        trace(9),
        trace(6, sites=SITES[:2]),
        trace(error=lambda *_: None),
        trace(complete=False),
        RunTrace("FORA", 20),
        FULL,
    ],
    ids=["longer", "other sites", "unmeasured", "stopped", "empty", "full"],
)
def test_unlike_runs_are_drawn_and_told(other):
    for a, b in ((BEFORE, other), (other, BEFORE)):
        picture(pair.draw(a, b))
        picture(pair.glance(a, b))
        assert sum(pair.summary(a, b).count(word) for word in ("Try", "Keep", "Let both run to the end")) == 1


def test_true_errors_compare_and_times_in_shadow_do_not():
    said = pair.summary(BEFORE, AFTER)
    assert "both computing in shadow" in said
    assert "it computed 50% of all there was to compute in place of 50%, and held 3.0 MiB in place of 3.0 MiB" in said
    assert "went from 0.050 to 0.020 on average" in said
    assert "measure = off" in said


def test_a_cached_run_against_a_full_one():
    said = pair.summary(FULL, trace(error=lambda step, site: None if step % 2 else 0.2))
    assert "took 1.80 s in the model where before (Full (no caching)) took 2.40 s, 1.33x faster" in said
    assert "Before made no error, and after would have made one of 0.200" in said


def test_estimates_of_two_policies_are_not_said_to_compare():
    estimated = trace(error=lambda step, site: None if step % 2 else 0.2)
    assert "hardly compare" in pair.summary(estimated, estimated)


@pytest.mark.parametrize(
    ("seconds", "error", "advice"),
    [(0.5, 0.5, "Keep what came after"), (2.0, 2.0, "Go back to what was before"), (0.5, 2.0, "the node Compare")],
)
def test_what_to_keep(seconds, error, advice):
    before = trace()
    after = trace(error=lambda step, site: error * 0.01 * (step + site.block + 1))
    after.moments = [m._replace(seconds=seconds * m.seconds) for m in after.moments]
    assert advice in pair.summary(before, after)
