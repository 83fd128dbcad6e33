"""Distances against closed forms, and a picture of them."""

import math

import pytest
import torch
from priorcache.plots import compare
from priorcache.plots.style import pixels


def grey(value: float, count: int = 2) -> torch.Tensor:
    return torch.full((count, 16, 16, 3), value)


def test_a_constant_difference_has_the_psnr_and_relative_error_of_arithmetic():
    """.5 against .6: mean square .01 is 20 dB, and .1 / .6 of the reference."""
    for d in compare.of_pictures(grey(0.5), grey(0.6)):
        assert d.psnr == pytest.approx(20.0, abs=1e-3)
        assert d.relative == pytest.approx(1 / 6, abs=1e-5)


def test_differences_beyond_a_byte_do_not_wrap():
    """Black against white is 0 dB, the worst there is."""
    assert compare.of_pictures(grey(0.0), grey(1.0))[0].psnr == pytest.approx(0.0, abs=1e-6)


def test_equal_pictures_are_equal():
    found = compare.of_pictures(grey(0.3), grey(0.3))
    assert all(math.isinf(d.psnr) and d.relative == 0 and d.ssim == pytest.approx(1) for d in found)
    assert "equal" in compare.table(found)


def test_the_mean_of_some_equal_pictures_is_that_of_the_others():
    a = grey(0.3)
    a[1] += 0.1
    mean = compare.table(compare.of_pictures(a, grey(0.3))).splitlines()[-1].split()
    assert mean[0] == "mean"
    assert mean[2:4] == ["20.00", "dB"]
    assert compare.table(compare.of_pictures(grey(0.3), grey(0.3))).splitlines()[-1].split()[2] == "equal"


def test_structure_counts():
    a = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    near, far = compare.of_pictures(a * 0.98, a)[0], compare.of_pictures(a.flip(1), a)[0]
    assert near.ssim > 0.95 > 0.3 > far.ssim


def test_pictures_smaller_than_the_window_have_no_ssim():
    small = torch.zeros(1, 8, 8, 3)
    assert compare.of_pictures(small, small + 0.1)[0].ssim is None


def test_latents_of_any_rank_are_measured_each_alone():
    b = torch.ones(2, 4, 3, 5, 5)
    a = b.clone()
    a[1] *= 1.5
    assert [d.relative for d in compare.of_latents(a, b)] == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("count", [1, 3, 11])
def test_the_picture_shows_at_most_eight(count):
    a, b = grey(0.2, count), grey(0.4, count)
    figure = compare.draw(a, b, compare.of_pictures(a, b))
    assert pixels(figure).std() > 0.05
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 3 * min(count, 8)
    for column in range(min(count, 8)):
        left = [axes.get_position().x0 for axes in shown[column :: min(count, 8)]]
        assert left == pytest.approx([left[0]] * 3), "each difference stands below its two pictures"


def test_of_several_parts_each_counts_alike():
    exact = [torch.ones(1, 4, 100), torch.ones(1, 2)]
    for lost in (0, 1):
        found = [part * (i != lost) for i, part in enumerate(exact)]
        (distance,) = compare.of_latents(*compare.checked(found, exact, "latent"))
        assert distance.relative == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match=r"latent_a is 1 x 4 x 100, 1 x 2 and latent_b is 1 x 4 x 100;"):
        compare.checked(exact, exact[0], "latent")


def test_batches_of_two_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"images_a is 2 x 16 x 16 x 3 and images_b is 1 x 16"):
        compare.checked(grey(0.1), grey(0.1, 1), "images")
