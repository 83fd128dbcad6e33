"""The look: colours that can be told apart, by colour-blind readers too, and scales."""

import itertools

import numpy as np
import pytest
from drawn import NAN
from matplotlib.colors import to_hex, to_rgb
from priorcache.cache_core.trace import KINDS, human_bytes
from priorcache.plots.style import THEMES, log_norm, statistics_over_sites

THEME = pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
BLINDNESS = {
    "none": np.eye(3),
    # Machado, Oliveira and Fernandes (10.1109/TVCG.2009.113), severity 1, on linear RGB
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour: str, seen: str) -> np.ndarray:
    """CIELAB under D65, of a colour as somebody sees it."""
    rgb = np.clip(np.array(BLINDNESS[seen]) @ linear(colour), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.maximum(xyz / np.array([0.9505, 1.0, 1.089]), 0.008856))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    """As the WCAG counts it."""
    light = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(c)) for c in (a, b))
    return (light[1] + 0.05) / (light[0] + 0.05)


@THEME
@pytest.mark.parametrize("seen", BLINDNESS)
def test_kinds_and_curves_are_told_apart_by_every_eye(theme, seen):
    assert tuple(theme.kinds) == KINDS
    for a, b in [*itertools.combinations(theme.kinds.values(), 2), (theme.estimated, theme.true)]:
        assert np.linalg.norm(lab(a, seen) - lab(b, seen)) > 15, (a, b)


@THEME
def test_writing_and_curves_stand_out_from_the_paper(theme):
    assert contrast(theme.ink, theme.paper) > 12
    assert contrast(theme.soft, theme.paper) > 4.5
    assert min(contrast(c, theme.paper) for c in (theme.estimated, theme.true, theme.memory)) > 3


@THEME
def test_the_scale_of_errors_grows_away_from_the_paper_at_every_step(theme):
    steps = [contrast(to_hex(theme.heat(x)), theme.paper) for x in np.linspace(0, 1, 9)]
    assert all(b > a for a, b in itertools.pairwise(steps))


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
