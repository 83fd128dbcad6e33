"""Figures by hand: what is compared with what, and what the page says of it."""

import json
import math

import pytest
from priorcache.benchmarks.standings import (
    DEFAULT,
    PLAN,
    Point,
    Setting,
    between_thresholds,
    clock,
    page,
    summary,
    targets,
)


def setting(default=0.05, plan=0.02, alone=True, **about) -> Setting:
    points = [
        Point("all steps", 20, 0.0, 0, 0, 10.0),
        Point("fewer steps, euler", 10, 0.06, 0, 20, 5.0),
        Point("reuse", 10, 0.09, 0, 20, 5.0),
        Point("Spectrum", 9, 0.08, 0, 20, 4.6),
        Point("LazyCache 1", 4, 0.4, 0, 10, 2.0),
        Point("LazyCache 0.5", 16, 0.1, 0, 20, 8.0),
        Point(DEFAULT, 10, default, 0, 22, 5.2),
        Point(PLAN, 10, plan, 0, 25, 5.2),
    ]
    usual = {
        "model": "dit",
        "sampler": "euler",
        "scheduler": "simple",
        "steps": 20,
        "cfg": 1.5,
        "counts": [10],
        "pairs": 64,
        "calibration": 16,
    }
    return Setting(usual | {"machine": "a machine", "alone": alone} | about, points)


def test_a_report_is_json_that_every_reader_takes():
    exact = setting()
    exact.points[0].psnr = math.inf
    text = json.dumps(exact.report, allow_nan=False)
    assert Setting.parsed(json.loads(text)) == exact


def test_a_method_of_thresholds_is_read_between_its_neighbours():
    points = setting().points
    assert between_thresholds(points, "LazyCache", 10) == Point("LazyCache", 10, pytest.approx(0.2), 0, 15.0, 5.0)
    assert between_thresholds(points, "LazyCache", 18) is None
    lower = Point("LazyCache 0.8", 4, 0.3, 0, 0, 2.0)
    assert between_thresholds([*points, lower], "LazyCache", 4).error == pytest.approx(0.3)
    assert setting().at("LazyCache", 10) == pytest.approx(0.2)
    assert "| LazyCache, between its thresholds | 0.2000, 15.0, 0.50 |" in setting().table()


def test_a_schedule_that_cannot_have_as_many_steps_is_taken_with_one_less():
    assert setting().at("Spectrum", 10) == 0.08
    assert setting().at("Spectrum", 11) is None


def test_schedulers_that_make_more_steps_are_named():
    assert "makes" not in page([setting()], "")
    assert "`ddim_uniform` makes 20 steps where 19 are asked for." in page(
        [setting(scheduler="ddim_uniform", steps=19)], ""
    )


def test_large_pictures_are_told_of():
    assert "times as large" not in page([setting()], "")
    told = page([setting(), setting(model="flux-large", times=3, shift=3.0)], "")
    assert "Pictures of flux-large are 3 times as large, with shift 3: those whose 3 x 3 neighbours are alike" in told


def test_the_best_baseline_and_the_best_cache_are_told_apart():
    line = summary([setting()]).splitlines()[-1]
    assert line == "| dit, euler, 20 steps, cfg 1.5 | 0.060 fewer steps, euler / **0.050** / **0.020** (0.25) |"
    assert "/ 0.070 / **0.020**" in summary([setting(default=0.07)])
    assert "/ **0.050** / 0.055 (0.69)" in summary([setting(plan=0.055)])


def test_columns_are_called_what_most_rows_are():
    head, _, *rows = summary([setting(), setting(), setting(steps=21)]).splitlines()
    assert head == "| | 0.5 of the evaluations |"
    assert len(rows) == 3


def test_targets_are_counted():
    met, third, own = targets([setting(), setting(default=0.09, plan=0.06, steps=21)])
    assert "so in 1 of 2 places" in met
    assert "1.17 (0.83 to 1.50) times" in met
    assert "Worst: 1.50 at 10 in dit, euler, 21 steps, cfg 1.5." in met
    assert "so in 1 of 2 places" in third
    assert "so in 2 of 2 places; 0.53 (0.40 to 0.67)" in own


def test_without_plans_nothing_is_said_of_them():
    bare = setting()
    bare.points.pop()
    assert len(targets([bare])) == 1
    assert summary([bare]).splitlines()[-1].endswith("/ **0.050** |")


def test_times_are_shown_only_of_settings_that_were_measured_whole_and_alone():
    whole = page([setting()], "--write")
    assert "| Plan (ours) | 0.0200, 25.0, 0.52 |" in whole
    assert "| error, PSNR in dB, time | 10 of 20 |" in whole
    later = setting(machine="a machine; Plan (ours) on another one")
    assert later.machines == {"": "a machine", "Plan (ours)": "another one"}
    for other in (later, setting(alone=False)):
        text = page([other], "--write")
        assert "On the clock" not in text
        assert "| Plan (ours) | 0.0200, 25.0 |" in text
        assert "On the clock" in page([other, setting()], "")
    assert "on a machine; another one. Relative" in page([later], "--write")


def test_time_is_compared_with_evaluations():
    slow = setting()
    slow.points[-1].seconds = 6.0
    *_, spectrum, lazy, ours, plan = clock([setting(), slow]).splitlines()
    assert ours == f"| {DEFAULT} | 1.04 (1.04 to 1.04) |"
    assert plan == f"| {PLAN} | 1.12 (1.08 to 1.16) |"
    assert lazy == "| LazyCache | 1.00 (1.00 to 1.00) |"
    assert spectrum == "| Spectrum | 1.02 (1.02 to 1.02) |"
    more = Setting(slow.about, [*slow.points, Point("reuse, elsewhere", 10, 0.05, 0, 20, 50.0)])
    assert "| reuse | 1.00 (1.00 to 1.00) |" in clock([setting(), more])
    assert f"| {PLAN} | 1.04 | 1.20 |" in clock([setting(), Setting(slow.about | {"model": "flux"}, slow.points)])
