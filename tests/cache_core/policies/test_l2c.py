"""L2C alone: which gates reuse, and which runs it declines. The published routers are in tests/priors."""

import math
import re

import pytest
from priorcache.cache_core.policies import L2C
from priorcache.cache_core.sites import Action, Schedule, Site, Step

SITES = tuple(Site(f"blocks.{i}.{b}", i, 2) for i in range(2) for b in ("attn", "mlp"))
FULL = (math.inf,) * 4
POLICY = L2C((FULL, (0.0, 0.1, 0.2, 1.0), FULL, (0.0, 0.0, 0.0, math.inf)), tuple(s.name for s in SITES), 4)


def decided(policy: L2C) -> list[str]:
    """One string per evaluation, r where a site is reused."""
    steps = [Step(i, 4, i / 4, 4.0 - i) for i in range(6)]
    return ["".join("Cr"[policy.decide(step, s) is Action.REUSE] for s in SITES) for step in steps]


@pytest.mark.parametrize(
    ("threshold", "second", "fourth"),
    [(0.0, "rCCC", "rrrC"), (0.1, "rrCC", "rrrC"), (0.5, "rrrC", "rrrC"), (1.0, "rrrr", "rrrC")],
)
def test_gates_up_to_the_threshold_reuse_and_nothing_else_does(threshold, second, fourth):
    policy = L2C(POLICY.scores, POLICY.sites, 4, threshold)
    assert decided(policy) == ["CCCC", second, "CCCC", fourth, "CCCC", "CCCC"]


def test_a_site_it_never_heard_of_is_computed():
    assert POLICY.decide(Step(1, 4, 0.25, 3.0), Site("other.attn", 0, 1)) is Action.COMPUTE


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(20, sites=SITES), "belongs to 4 sampler steps and this run has 20.*train a router for 20"),
        (Schedule(4, sites=SITES[:2]), r"4 branches there, 2 here; blocks\.1\.attn is only in the router.*train one"),
        (Schedule(4, sites=(*SITES, Site("a.mlp", 2, 3))), r"a\.mlp is only in the model"),
    ],
)
def test_declines_a_run_that_it_was_not_made_for(schedule, said):
    assert re.search(said, POLICY.objection(schedule))


def test_serves_its_own_run_and_one_of_which_the_branches_are_unknown():
    assert POLICY.objection(Schedule(4, sites=SITES)) is None
    assert POLICY.objection(Schedule(4)) is None


def test_a_router_of_two_calls_per_step_serves_no_sampler_of_one():
    """Its rows are of other noise: those of heun, which calls the model three times in two steps."""
    heun = L2C((FULL, (0.0,) * 4, FULL), POLICY.sites, 2)
    said = heun.objection(Schedule(2, sampler="euler"))
    assert "trained with 3 calls of the model in 2 steps, and the sampler euler makes one per step; sample" in said
    assert heun.objection(Schedule(2, sampler="heun")) is None
    assert heun.objection(Schedule(2)) is None  # unknown


def test_declines_when_no_gate_is_low_enough():
    high = L2C((FULL, (0.5,) * 4), POLICY.sites, 2)
    assert "no gate of its router is at or below threshold 0.1, the smallest is 0.5;" in high.objection(Schedule(2))


def test_the_first_evaluation_has_nothing_to_reuse():
    """Gates of it alone are none at all."""
    low = L2C(((0.0,) * 4, (0.5,) * 4), POLICY.sites, 2)
    assert "no gate" in low.objection(Schedule(2))
    assert low.describe() == "L2C 0 of 8 reused (threshold 0.1)"


@pytest.mark.parametrize("bad", [{"threshold": 1.5}, {"threshold": -0.1}, {"sites": ("a",)}])
def test_refuses_settings_without_meaning(bad):
    with pytest.raises(ValueError, match=r"^L2C: "):
        L2C(**{"scores": POLICY.scores, "sites": POLICY.sites, "steps": 4} | bad)
