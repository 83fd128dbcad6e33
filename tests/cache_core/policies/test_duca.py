"""DuCa: the published step strings, and aggressive steps on a network."""

from itertools import pairwise

import pytest
import torch
from architectures.dit import dit
from priorcache.cache_core.adapters import adapter_for, installed
from priorcache.cache_core.policies import DuCa, ToCa
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import STACK, Action, Schedule, Site, Step

PUBLISHED_DIT = (
    "F c a c F0+c F c a c F c a c F c a c F0+a c F a c F a c F a c F a c F c F c F c F c F c F c F c F c F c F"
)


def string(policy: ToCa, total: int) -> str:
    return " ".join(policy.prepared(Schedule(total)).steps)


def test_dit_ddim_50_as_published():
    assert string(DuCa("dit", faithful=True), 50) == PUBLISHED_DIT


def test_dit_ddim_50_with_one_decision_per_step():
    assert string(DuCa("dit"), 50) == PUBLISHED_DIT.replace("F0+c", "F").replace("F0+a", "F")


@pytest.mark.parametrize(
    ("policy", "total", "expected"),
    [
        (DuCa("pixart"), 9, "F c a F c a F c a"),
        (DuCa("pixart", 4), 9, "F c a c F c a c F"),
        (DuCa("flux"), 13, "F F F a c a c F a c a c F"),
        (DuCa("hunyuan video"), 11, "F c a c a F c a c a F"),
    ],
)
def test_which_kind_comes_first_is_the_models(policy, total, expected):
    assert string(policy, total) == expected


def test_where_blocks_cannot_be_skipped_their_branches_are_reused():
    policy, now = DuCa("dit", steps=("F", "a")), Step(1, 2, 0.5, 1.0)
    assert policy.decide(now, STACK) is Action.REUSE
    assert {policy.decide(now, Site(f"blocks.0.{b}", 0, 2)) for b in ("attn", "mlp")} == {Action.REUSE}


def test_aggressive_steps_run_the_final_layer_on_the_state_of_the_step_before():
    network, inputs = dit()
    seen, adapter = [], adapter_for(network)
    network.final_layer.register_forward_hook(lambda _, args, out: seen.append(args[0].clone()))
    run = CacheRun(DuCa("dit", steps=("F", "c", "a", "a", "F", "a"), ratio=0.2), 6)
    with torch.inference_mode():
        for i in range(6):
            with run.evaluation(6.0 - i, i / 6), installed(adapter, network, run.next_forward([(0, "a"), (1, "b")])):
                network(**inputs(i))
    same = [torch.equal(a, b) for a, b in pairwise(seen)]
    assert same == [False, True, True, False, True]
    run.close(complete=True)
    assert [step["computed"] for step in run.trace.as_dict()["steps"]] == [1, 0, 0, 0, 1, 0]
    by_step = [{r.action for r in run.trace.rows if r.step == i and r.site != STACK} for i in range(6)]
    some, all_reused = {Action.PARTIAL, Action.REUSE}, {Action.REUSE}
    assert by_step == [{Action.COMPUTE}, some, all_reused, all_reused, {Action.COMPUTE}, all_reused]
