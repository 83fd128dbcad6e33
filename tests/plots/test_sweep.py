"""The table, the chart and the grid of a sweep."""

import numpy as np
import pytest
from priorcache.plots import sweep
from priorcache.plots.style import THEMES, pixels
from priorcache.plots.sweep import CACHED, STEPS, UNCACHED, Point


def point(name: str, kind: str, time: float, error: float, **changes) -> Point:
    settings = {"computed": 0.5, "seconds": (time,) * 3, "uncached": (8.0,) * 3, "errors": (error, 3 * error)}
    return Point(name, kind, **settings | changes)


POINTS = [
    point("uncached", UNCACHED, 8.0, 0.0, computed=1.0),
    point("Forecast 1.5x", CACHED, 5.6, 0.01),
    point("Forecast 2x", CACHED, 4.2, 0.02),
    point("FORA N=2 (published)", CACHED, 4.4, 0.05),
    point("Taylor 1 on FORA N=2 (aligned)", CACHED, 4.3, 0.025),
    point("10 steps", STEPS, 4.0, 0.06),
    point("7 steps", STEPS, 2.8, 0.1),
]


def test_time_and_speed_are_medians_over_runs_and_speed_is_paired():
    """One run that was disturbed moves neither; a machine that slows down for both moves the ratio not at all."""
    p = point("a", CACHED, 0, 0.1, seconds=(1.0, 2.0, 90.0), uncached=(2.0, 4.0, 8.0))
    assert p.time == 2.0
    assert p.faster == 2.0
    assert p.error == pytest.approx(0.2)
    assert p.worst == pytest.approx(0.3)


def test_the_table_has_a_line_per_point_and_says_what_the_runs_said():
    lines = sweep.table(
        [*POINTS, point("Forecast 4x", CACHED, 8.0, 0.0, notes=("it computed everything.",))]
    ).splitlines()
    assert len(lines) == 1 + 8 + 2
    assert lines[1].split() == ["uncached", "100%", "8.00", "1.00x", "0.0000", "0.0000"]
    assert lines[3].split() == ["Forecast", "2x", "50%", "4.20", "1.90x", "0.0400", "0.0600"]
    assert lines[-1] == "Forecast 4x: it computed everything."
    assert len({len(line) for line in lines[:9]}) == 1


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES.keys())
def test_every_point_is_labelled_inside_of_the_axes_and_no_label_hides_another(theme):
    figure = sweep.draw(POINTS, "DiT, ddim, 20 steps", theme)
    figure.canvas.draw()
    (axes,) = figure.axes
    renderer, room = figure.canvas.get_renderer(), axes.get_window_extent()
    labels = [child for child in axes.texts if child.get_text()]
    assert [label.get_text().split("\n")[0] for label in labels] == [
        p.name for p in [POINTS[0], *sorted(POINTS[1:], key=lambda p: -p.error)]
    ]
    boxes = [super(type(label), label).get_window_extent(renderer) for label in labels]
    for i, box in enumerate(boxes):
        assert room.x0 <= box.x0
        assert box.x1 <= room.x1 + 1
        assert not any(box.overlaps(other) for other in boxes[:i]), labels[i].get_text()


@pytest.mark.parametrize(
    "points",
    [
        POINTS[:1],
        [POINTS[0], point("same", CACHED, 8.0, 0.0)],
        [POINTS[0], *(point("the same place", CACHED, 4.0, 0.1) for _ in range(6))],
        [POINTS[0], point("broken", CACHED, 4.0, float("nan"))],
        [POINTS[0], point("a name that no node has room for, whatever its size may be", CACHED, 0.001, 40.0)],
        [point("uncached", UNCACHED, 0.0, 0.0, uncached=(0.0,) * 3), point("in no time", CACHED, 0.0, 0.2)],
        [point("uncached", UNCACHED, 8.0, float("nan")), point("broken", CACHED, 4.0, float("nan"))],
    ],
)
def test_it_draws_whatever_came_out(points):
    drawn = pixels(sweep.draw(points, "a model of " + "a long name " * 20))
    assert drawn.shape == (704, 800, 3)
    assert len(np.unique((drawn * 255).round() @ [1, 256, 65536])) > 20
    assert len(sweep.table(points).splitlines()) >= 1 + len(points)


def test_the_grid_shows_every_picture_pixel_for_pixel():
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (3, 128, 160, 3)) / 255 for _ in POINTS]
    grid = (pixels(sweep.pictures(list(zip(POINTS, batches, strict=True)))) * 255).round().astype(int)
    assert grid.shape[0] == len(POINTS) * 134 + 6
    left = grid.shape[1] - 3 * 166
    for row, batch in enumerate(batches):
        for column, picture in enumerate(batch):
            top, begin = 6 + row * 134, left + column * 166
            assert (grid[top : top + 128, begin : begin + 160] == (picture * 255).round()).all()
        assert len(np.unique(grid[6 + row * 134 : 134 + row * 134, :left])) > 10  # its name


def test_small_pictures_are_enlarged_by_whole_numbers_and_large_ones_made_smaller():
    assert sweep.sized(np.zeros((32, 40, 3))).shape == (128, 160, 3)
    assert sweep.sized(np.zeros((1024, 768, 3))).shape == (512, 384, 3)
    assert sweep.sized(np.full((4, 4, 3), 2.0)).max() == 255


def test_without_pictures_the_grid_says_what_to_connect():
    assert pixels(sweep.pictures([])).min() < 0.7
