import math
from itertools import pairwise

import pytest
from priorcache.cache_core.extrapolation import (
    axis,
    coefficients,
    ending,
    front_loaded,
    hastening,
    leaping,
    resampled,
    spread,
    widening,
)
from priorcache.cache_core.sites import Schedule


def value(polynomial, at, nodes, gains):
    weights = coefficients(at, nodes, gains)
    return sum(w * polynomial(u) for w, u in zip(weights, nodes, strict=True))


def test_linear_features_are_exact_at_uneven_nodes():
    assert value(lambda u: 3 - 2 * u, 0.2, [0.5, 0.9], (1.0, 0.0)) == pytest.approx(2.6)
    assert value(lambda u: 3 - 2 * u, 0.2, [0.5, 0.9, 1.3], (1.0, 0.0)) == pytest.approx(2.6)


def test_quadratic_features_are_exact_at_uneven_nodes():
    def square(u):
        return 1 + u - 3 * u * u

    assert value(square, 7.0, [6.0, 4.0, 1.0], (1.0, 1.0)) == pytest.approx(square(7.0))
    assert value(square, 7.0, [6.0, 4.0, 1.0], (1.0, 0.0)) != pytest.approx(square(7.0))


def test_no_gain_is_reuse_and_weights_always_sum_to_one():
    assert coefficients(3.0, [2.0, 1.0, 0.0], (0.0, 0.0)) == [1.0, 0.0, 0.0]
    assert sum(coefficients(3.0, [2.0, 1.0, 0.0], (0.7, -1.3))) == pytest.approx(1.0)


def test_equal_distances_give_the_textbook_weights():
    assert coefficients(3.0, [2.0, 1.0, 0.0], (1.0, 1.0)) == pytest.approx([3.0, -3.0, 1.0])


def test_one_past_feature_or_two_at_one_place_are_reused():
    assert coefficients(3.0, [2.0], (1.0, 1.0)) == [1.0]
    assert coefficients(3.0, [2.0, 2.0], (1.0, 1.0)) == [1.0, 0.0]
    assert coefficients(3.0, [2.0, 1.0, 1.0], (1.0, 1.0)) == pytest.approx([2.0, -1.0, 0.0])


@pytest.mark.parametrize(("total", "count", "expected"), [
    (20, 10, (0, 2, 4, 6, 8, 10, 12, 14, 16, 18)),
    (20, 7, (0, 3, 6, 9, 12, 15, 18)),
    (9, 9, tuple(range(9))),
    (5, 2, (0, 3)),
])  # fmt: skip
def test_spread_is_even_and_begins_with_the_first_step(total, count, expected):
    assert spread(total, count) == expected


def test_front_loaded_steps_hold_the_first_and_the_last():
    assert front_loaded(20, 6) == (0, 2, 5, 9, 14, 19)
    assert front_loaded(20, 20) == tuple(range(20))
    assert front_loaded(9, 1) == (0,)


def test_widening_steps_are_even_ones_with_the_shorter_gaps_first():
    assert widening(20, 8) == (0, 2, 4, 6, 9, 12, 15, 18)
    assert widening(20, 10) == spread(20, 10)
    assert widening(9, 1) == (0,)


@pytest.mark.parametrize("total", [9, 20, 29, 50, 120])
def test_widening_steps_only_grow_apart_after_the_first_gap(total):
    for count in range(2, total + 1):
        chosen = widening(total, count)
        first, *gaps = [b - a for a, b in pairwise(chosen)]
        assert (len(chosen), chosen[0]) == (count, 0)
        assert chosen[-1] < total
        assert gaps == sorted(gaps)
        assert first >= 1 <= min(gaps, default=1)


def test_where_steps_are_fine_the_first_gap_is_longer():
    assert widening(29, 14)[:4] == (0, 4, 6, 8)
    assert widening(50, 25)[:5] == (0, 5, 6, 7, 9)


def test_an_ending_computes_the_last_steps():
    assert ending(spread, 50, 25, 2) == (*spread(48, 23), 48, 49)
    assert ending(spread, 50, 25, 0) == spread(50, 25)
    assert ending(widening, 28, 28, 3) == tuple(range(28))


@pytest.mark.parametrize(
    ("scheduler", "end", "leaps"),
    [
        ("ddim_uniform", (0.1469, 0.0826, 0.0148, 0.0), 2),
        ("normal", (0.2546, 0.1340, 0.0100, 0.0), 2),
        ("simple", (0.2053, 0.1405, 0.0762, 0.0), 1),
        ("beta", (0.1566, 0.0891, 0.0369, 0.0), 0),
        ("karras", (0.0223, 0.0151, 0.0100, 0.0), 0),
        ("stopped early", (0.9, 0.8, 0.7, 0.6), 0),
        ("unknown", (), 0),
    ],
)
def test_whether_noise_leaps_at_the_end(scheduler, end, leaps):
    assert leaping(end) == leaps


@pytest.mark.parametrize("total", [9, 20, 28, 50])
def test_front_loaded_steps_only_grow_apart(total):
    for count in range(2, total + 1):
        chosen = front_loaded(total, count)
        gaps = [b - a for a, b in pairwise(chosen)]
        assert (len(chosen), chosen[0], chosen[-1]) == (count, 0, total - 1)
        assert gaps == sorted(gaps)
        assert min(gaps) >= 1
        assert all(after <= 2 * before for before, after in pairwise(gaps))


def test_axes():
    eps, flow = Schedule(3, (8.0, 2.0, 1.0, 0.0), prediction="EPS"), Schedule(2, (1.0, 0.5, 0.0), prediction="FLOW")
    assert axis(eps, "sigma") == (8.0, 2.0, 1.0)
    assert axis(eps, "step") == (0.0, 1.0, 2.0)
    assert axis(eps, "log snr") == pytest.approx([-2 * math.log(8), -2 * math.log(2), 0.0])
    assert axis(flow, "log snr") == pytest.approx([2 * math.log(1e-3), 0.0])
    assert axis(Schedule(3), "sigma") == (0.0, 1.0, 2.0)


LEVELS = (*(10 * 0.7**i for i in range(12)), 0.0)
"""A schedule that is even in log sigma."""


def test_a_plan_on_its_own_levels_stays_as_it_is():
    gains = tuple((float(i), 0.0) for i in range(12))
    assert resampled((0, 1, 4, 9), gains, LEVELS, LEVELS) == ((0, 1, 4, 9), gains)


def test_a_plan_for_twice_the_steps_computes_the_same_share_at_the_same_noise():
    double = (*(10 * 0.7 ** (i / 2) for i in range(24)), 0.0)
    computed, gains = resampled((0, 3, 6, 9), tuple((float(i), 0.0) for i in range(12)), LEVELS, double)
    assert computed == (0, 3, 6, 9, 12, 15, 18, 21)
    assert gains[8] == (4.0, 0.0)
    assert len(gains) == 24


def test_a_plan_keeps_its_share_of_steps_on_levels_of_another_shape():
    """Of levels that crowd at the end, or go beyond the old ones, none is chosen twice, and the first always is."""
    for new in ((*(20 * 0.5**i for i in range(20)), 0.0), (*(10 - 0.5 * i for i in range(20)), 0.0)):
        computed, _ = resampled((0, 3, 6, 9), (), LEVELS, new)
        assert len(set(computed)) == round(4 * 20 / 12)
        assert computed[0] == 0
        assert computed[-1] < 20


@pytest.mark.parametrize(("shift", "bend", "expected"), [(1, 1, False), (3, 1, True), (9, 1, True), (1, 3, False)])
@pytest.mark.parametrize("steps", [9, 12, 20, 51])
def test_noise_is_taken_away_late_where_it_is_shifted(steps, shift, bend, expected):
    """With an even schedule it is not, nor where noise fades, as with karras."""
    even = [(1 - i / steps) ** bend for i in range(steps + 1)]
    assert hastening([shift * t / (1 + (shift - 1) * t) for t in even]) == expected


def test_of_no_schedule_nothing_is_known():
    assert not hastening(())
