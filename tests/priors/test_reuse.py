"""The errors of reuse that a budget chooses by."""

from dataclasses import replace

import pytest
import torch
from priorcache.cache_core.policies import FORA, L2C, ToCa
from priorcache.cache_core.sites import Site
from priorcache.priors.prior import Prior, PriorError, Subject
from priorcache.priors.reuse import errors

SITES = tuple(Site(f"blocks.0.{name}", 0, 1) for name in ("attn", "mlp"))
STEPS = 6


@pytest.fixture
def prior() -> Prior:
    """attn: error .1 over one step and .3 over two; mlp: its step over ten."""
    difference = torch.full((2, STEPS, 2), float("nan"), dtype=torch.float64)
    difference[0, 1:, 0], difference[1, 2:, 0] = 0.01, 0.09
    difference[0, 1:, 1] = (torch.arange(1, STEPS) / 10).square()
    tables = {
        "sigmas": torch.linspace(6, 1, STEPS, dtype=torch.float64),
        "power": torch.ones(STEPS, 2, dtype=torch.float64),
        "difference": difference,
    }
    subject = Subject("DiT", "", "EPS", "euler", "simple", STEPS, 1.0)
    return Prior(subject, tuple(site.name for site in SITES), 1, tables)


def test_a_prior_without_branches_is_refused(prior):
    empty = {"power": torch.zeros(STEPS, 0), "difference": torch.zeros(2, STEPS, 0)}
    with pytest.raises(PriorError, match="tells of no branches; calibrate with scope set to 'branches'"):
        errors(replace(prior, sites=(), tables=prior.tables | empty), FORA(2, "aligned"), SITES)


def test_each_is_that_of_the_steps_and_distances_at_which_it_is_reused(prior):
    found = dict(errors(prior, FORA(2, "aligned"), SITES))  # 1, 3 and 5, each from the step before
    assert found == {"blocks.0.attn": pytest.approx(0.1), "blocks.0.mlp": pytest.approx(((1 + 9 + 25) / 300) ** 0.5)}
    found = dict(errors(prior, FORA(3, "aligned"), SITES))  # 1, 2, 4 and 5, every second one from two before
    assert found["blocks.0.attn"] == pytest.approx(((0.01 + 0.09) / 2) ** 0.5)


def test_farther_back_than_was_measured_counts_as_what_was(prior):
    found = dict(errors(prior, FORA(6, "aligned"), SITES[:1]))
    assert found["blocks.0.attn"] == pytest.approx(((0.01 + 4 * 0.09) / 5) ** 0.5)


def test_what_is_never_reused_or_unknown_is_left_out(prior):
    names = tuple(site.name for site in SITES)
    router = L2C(((1.0, 1.0), (0.0, 1.0)) * 3, names, STEPS)
    assert [name for name, _ in errors(prior, router, SITES)] == ["blocks.0.attn"]
    assert errors(prior, router, [Site("blocks.9.attn", 9, 10)]) == ()


def test_of_a_preset_that_is_left_open_those_at_the_steps_of_the_one_for_this_model(prior):
    names = ("blocks.0.img_mlp", "blocks.0.txt_mlp")
    joint, known = tuple(Site(name, 0, 1) for name in names), replace(prior, sites=names)
    assert errors(known, ToCa(), joint) == errors(known, ToCa("flux"), joint) != errors(known, ToCa("dit"), joint)
