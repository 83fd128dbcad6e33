"""Golden figures: published operation counts, on meta tensors, through the engine."""

import pytest
from priorcache.benchmarks import flops
from priorcache.cache_core.policies import FORA, Full
from priorcache.cache_core.sites import Action, Site, Step
from priorcache.models.dit import DiTConfig

XL = DiTConfig(1152, 28, 16, 2, 4, 1000, True, 16)
LEVELS = [(FORA(2, "aligned", end=0.5), 0.25), (FORA(2, "aligned"), 0.5), (FORA(4, "aligned"), 0.75)]


def by_schedule(policy, steps: int) -> int:
    """FLOPs of DiT-XL/2 at 256 x 256 with guidance: every step's rest, and the branches of the computed ones."""
    branches, rest = flops.expected(XL, 32)
    site = Site("blocks.0.attn", 0, 28)
    asked = [policy.decide(Step(i, steps, i / steps, float(steps - i)), site) for i in range(steps)]
    return steps * rest + asked.count(Action.COMPUTE) * branches


@pytest.mark.parametrize("policy", [Full(), FORA(2), FORA(3)], ids=lambda p: p.describe())
def test_the_engine_executes_what_the_schedule_says(policy):
    assert flops.sampling(policy, XL, 4, 32) == by_schedule(policy, 4)


def test_dit_xl_2_ddim_50_costs_what_is_published():
    """23.74 TFLOPs in the literature, which counts softmax and GELU too but not the final layer."""
    assert by_schedule(Full(), 50) / 1e12 == pytest.approx(23.74, rel=2e-3)


@pytest.mark.parametrize(("interval", "published"), [(2, 12.354), (3, 8.560), (5, 5.240)])
def test_fora_on_dit_xl_2_costs_what_is_published(interval, published):
    assert by_schedule(FORA(interval), 50) / 1e12 == pytest.approx(published, rel=4e-3)


@pytest.mark.parametrize(("policy", "reused"), LEVELS)
def test_the_later_papers_levels_save_their_share_of_branches(policy, reused):
    branches, rest = flops.expected(XL, 32)
    assert by_schedule(policy, 20) == 20 * rest + round(20 * (1 - reused)) * branches
