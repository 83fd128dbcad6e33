"""Prompts: together or apart, several, in parts of the picture or of the schedule, and guiders of three roles."""

from __future__ import annotations

import importlib
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from matrix import LEVELS, TEXT, everything, levels
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import Trace
from subjects import close

scenario = pytest.mark.scenario
HELD = "bit-equal in full, error below .5 when reused"


@scenario("conds in one call or in two", "error below 1e-5 between the two")
@levels()
def test_in_one_call_or_in_two(host, subject, policy, apart):
    model, calls = subject.calls(subject.model)
    one = subject.sample(host.attach(model, policy), cfg=4.0)
    assert set(calls) == {2}
    calls.clear()
    apart(subject.model)
    trace = Trace()
    two = subject.sample(host.attach(model, policy, trace), cfg=4.0)
    assert set(calls) == {1}
    assert close(two, one) < 1e-5
    assert trace.runs[0].computed_fraction == 0.5


@scenario("conds of different lengths", HELD)
@levels()
@pytest.mark.parametrize("subject", TEXT, indirect=True)
def test_of_different_lengths_go_in_two_calls(subject, policy, held):
    model, calls = subject.calls(subject.model)
    prompts = {"positive": subject.prompt(1, words=7), "negative": subject.prompt(2, words=3)}
    held(model, policy, lambda model: subject.sample(model, **prompts))
    with_cache = 8 + (4 if policy.level == "model" else 8)
    assert set(calls) == {1}
    assert len(calls) in (with_cache, 8 + with_cache)  # without one it is sampled for the first level only


@scenario("no guidance, then guidance", "half the memory without a negative")
@levels()
def test_the_negative_is_not_computed_without_guidance(host, subject, policy):
    model, calls = subject.calls(subject.model)
    trace = Trace()
    subject.sample(host.attach(model, policy, trace), cfg=1.0)
    subject.sample(host.attach(model, policy, trace), cfg=2.0)
    assert set(calls) == {1, 2}
    assert trace.runs[1].peak_bytes == 2 * trace.runs[0].peak_bytes


@levels()
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=scenario(name, HELD))
        for kind, name in {
            "several": "several positives",
            "area": "areas",
            "mask": "masks",
            "ranges": "timestep ranges",
            "all": "all of these at once",
        }.items()
    ],
)
def test_several_positives(subject, policy, kind, held):
    height, width = subject.size
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2] = 1
    parts = {
        "several": [{"strength": 0.5}],
        "area": [{"area": (height // 2, width, 0, 0), "strength": 1.0}],
        "mask": [{"mask": mask, "mask_strength": 0.8, "set_area_to_bounds": False}],
        "ranges": [{"start_percent": 0.0, "end_percent": 0.5}, {"start_percent": 0.5, "end_percent": 1.0}],
    }
    if type(subject.model.model).__name__ == "PixArt":
        parts["area"] = [{"area": (height - 8, width, 8, 0), "strength": 1.0}]  # not below what it accepts
    wanted = [p for name in parts if kind in (name, "all") for p in parts[name]]
    positive = [*subject.prompt(1), *(c for i, more in enumerate(wanted) for c in subject.prompt(10 + i, **more))]
    held(subject.model, policy, lambda model: subject.sample(model, positive=positive), computed=None)


@scenario("perpendicular negative", HELD + "; error below 1e-5 in one call or in three")
@levels()
def test_three_roles_of_perpendicular_negatives(host, subject, policy, held, apart):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    def sample(model):
        guider = Guider_PerpNeg(model)
        guider.set_conds(subject.prompt(1), subject.prompt(2), subject.prompt(3))
        guider.set_cfg(3.0, 0.7)
        return subject.guided(guider)

    together = held(subject.model, policy, sample).cached
    apart(subject.model)
    assert close(sample(host.attach(subject.model, policy)), together) < 1e-5


@scenario("skip-layer guidance", HELD)
@levels()
@pytest.mark.parametrize("node", ["after", "instead"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_guidance_by_skipped_layers(host, sd3, policy, node, ours_first):
    """A third prediction without a block, or that block left out of the negative alone."""
    layer = "0" if policy.level == "stack" else "1"

    def guide(model):
        window = {"start_percent": 0.0, "end_percent": 0.7}
        if node == "after":
            kind = importlib.import_module("comfy_extras.nodes_sd3").SkipLayerGuidanceSD3
            return kind.execute(model, layers=layer, scale=2.0, **window).args[0]
        kind = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiTSimple
        return kind.execute(model, double_layers=layer, **window).args[0]

    def both(policy):
        if ours_first:
            return guide(host.attach(sd3.model, policy, trace))
        return host.attach(guide(sd3.model), policy, trace)

    trace = Trace()
    stock = sd3.sample(guide(sd3.model), steps=6)
    assert not torch.equal(stock, sd3.sample(steps=6))
    assert torch.equal(sd3.sample(both(everything(policy)), steps=6), stock)
    cached = sd3.sample(both(policy), steps=6)
    assert 0 < close(cached, stock) < 0.5
    assert 0.5 <= trace.runs[-1].computed_fraction < 0.7


@levels()
@pytest.mark.parametrize("window", [(0.0, 0.6), (0.3, 1.0)])
def test_a_negative_with_layers_skipped_is_not_reused_for_one_without(host, sd3, policy, window):
    """Where guidance by skipped layers begins or ends, the negative is another function."""
    slg, trace = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiTSimple, Trace()
    start, end = window
    guided = slg.execute(sd3.model, double_layers="0", start_percent=start, end_percent=end).args[0]
    sampling = sd3.model.get_model_object("model_sampling")
    once = replace(policy, interval=6)  # computes the first step, and what it has nothing of
    sd3.sample(host.attach(guided, once, trace), steps=6)
    run = trace.runs[0]
    within = [
        sampling.percent_to_sigma(end) <= moment.step.sigma <= sampling.percent_to_sigma(start)
        for moment in run.moments
    ]
    change = next(i for i, (a, b) in enumerate(pairwise(within), 1) if a != b)
    computed = [{row.action for row in run.rows if row.step == i} for i in range(6)]
    assert run.notes == []
    assert computed[0] == {Action.COMPUTE}
    assert all(computed[i] == {Action.REUSE} for i in range(1, 6) if i != change)
    assert Action.COMPUTE in computed[change]


def test_all_blocks_are_computed_where_guidance_skips_the_last_one(host, sd3):
    """There is then nothing to tell what the blocks have put out."""
    slg, trace = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiTSimple, Trace()
    guided = slg.execute(sd3.model, double_layers="1", start_percent=0.0, end_percent=1.0).args[0]
    assert torch.equal(sd3.sample(host.attach(guided, LEVELS["FORA, all blocks"], trace)), sd3.sample(guided))
    assert "another node skips or replaces them" in trace.runs[0].notes[0]


def test_all_blocks_are_computed_from_where_guidance_skips_the_last_one(host, sd3):
    slg, trace = importlib.import_module("comfy_extras.nodes_slg").SkipLayerGuidanceDiTSimple, Trace()
    guided = slg.execute(sd3.model, double_layers="1", start_percent=0.4, end_percent=1.0).args[0]
    sd3.sample(host.attach(guided, replace(LEVELS["FORA, all blocks"], interval=6), trace), steps=6)
    run = trace.runs[0]
    last = max(row.step for row in run.rows if row.action is Action.REUSE)  # the positive, before the negative
    assert f"computed everything from evaluation {last} on: the blocks of this model did not run" in run.notes[0]
