"""Forecasting needs no adapter: UNets and video models, from the node's default to a plan of their own."""

import pytest
import subjects
import torch
from priorcache.cache_core.policies import Forecast
from priorcache.cache_core.trace import Trace

STEPS = 12


@pytest.fixture(scope="module", params=["unet", "wan"])
def subject(request, comfy):
    return getattr(subjects, request.param)()


@pytest.fixture(scope="module")
def nodes(comfy):
    import priorcache.nodes as pack

    pack.register_folder()
    return {n.GET_SCHEMA().node_id: n for n in pack.NODES}


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_half_of_the_evaluations_are_skipped_and_all_computed_is_stock(subject, attach, sampler):
    stock = subject.sample(steps=STEPS, sampler=sampler)
    assert torch.equal(subject.sample(attach(subject.model, Forecast(1.0)), steps=STEPS, sampler=sampler), stock)
    counted, calls = subject.calls(subject.model)
    trace = Trace()
    out = subject.sample(attach(counted, Forecast(2.0), trace), steps=STEPS, sampler=sampler)
    assert len(calls) == STEPS // 2
    assert len(trace.runs[0].full_steps()) == STEPS // 2
    assert 0 < subjects.close(out, stock) < 1
    assert torch.equal(subject.sample(steps=STEPS, sampler=sampler), stock)


def test_calibrate_search_plan(subject, nodes, attach):
    latent = {"samples": torch.zeros(2, subject.channels, *subject.size)}
    conds = subject.prompt(1), subject.prompt(2)
    with torch.inference_mode():
        prior = nodes["PriorCacheCalibrate"].execute(
            subject.model, *conds, latent, seed=1, runs=1, steps=STEPS, cfg=2.0, sampler_name="euler", scheduler="simple",
            denoise=1.0, longest_gap=1, mean_features=False,
        ).args[0]  # fmt: skip
        planned = nodes["PriorCacheSearch"].execute(
            prior, subject.model, *conds, latent, seed=40, samplings=4.0, speedups="2, 3"
        ).args[0]  # fmt: skip
    assert [plan.evaluations for plan in planned.plans] == [6, 4]
    assert all(plan.error <= plan.unplanned for plan in planned.plans)
    policy = nodes["PriorCachePlan"].execute(planned, "speed-up", 2.0, subject.model).args[0]
    trace = Trace()
    subject.sample(attach(subject.model, policy, trace), steps=STEPS)
    assert trace.runs[0].notes == []
    assert trace.runs[0].full_steps() == list(policy.computed)
