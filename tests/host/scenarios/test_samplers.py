"""Every policy on every architecture, with every sampler of the host."""

from __future__ import annotations

import contract
import pytest
import torch
from matrix import ARCHITECTURES, EVERY_POLICY, POLICIES, STEPS, Ground, Trends, everything, sampled
from priorcache.cache_core.adapters import sites_of
from priorcache.cache_core.policies import Full, eoc
from priorcache.cache_core.trace import RunTrace, Trace
from subjects import close

BOUND = 1.0
"""Samplers that extrapolate over their last steps, such as lms, amplify an error in the first few of five steps."""

SIZES = {"pixart": (48, 40)}


@pytest.fixture(scope="session")
def in_full(request, host):
    """Sampled without a cache, once for each sampler: (picture, what a policy may be made for)."""
    known: dict = {}

    def call(architecture: str, steps: int, sampler: str):
        key = (architecture, steps, sampler)
        if key not in known:
            subject, trends = request.getfixturevalue(architecture), Trends()
            settings = {"sampler": sampler, "steps": steps, "size": SIZES.get(architecture, (8, 8))}
            stock = subject.sample(host.attach(subject.model, Full(), observers=[trends]), **settings)
            known[key] = subject, settings, stock, Ground(sites_of(subject.model.model.diffusion_model), steps, trends)
        return known[key]

    return call


def told(run: RunTrace, sampler: str) -> str:
    """The share that was computed, or why everything was."""
    if run.notes:
        return run.notes[0].partition(": ")[2].replace(f"the sampler {sampler}", "the sampler")
    if sampler == "dpm_adaptive":
        return "less computed"  # rounding may tip how many steps it takes
    return f"{run.computed_fraction:.0%} computed"


def test_every_policy_is_here():
    assert contract.missing(POLICIES, "Full", "Budget") == set()  # which reuse nothing, and by another one


POLICY = pytest.mark.parametrize("name", POLICIES)
ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.mark.scenario(EVERY_POLICY, "bit-equal in full, error below .6 when reused")
@POLICY
@ARCHITECTURE
def test_every_policy_on_every_architecture(host, in_full, architecture, name):
    subject, settings, stock, ground = in_full(architecture, STEPS.get(name, 5), "euler")
    policy = POLICIES[name](ground)
    assert torch.equal(subject.sample(**settings), stock)
    assert torch.equal(subject.sample(host.attach(subject.model, everything(policy)), **settings), stock)
    trace = Trace()
    cached = subject.sample(host.attach(subject.model, policy, trace), **settings)
    assert trace.runs[0].notes == []
    assert trace.runs[0].computed_fraction < 1
    assert 0 < close(cached, stock) < 0.6
    assert torch.equal(subject.sample(**settings), stock)


@ARCHITECTURE
def test_trends_that_are_brought_to_a_device_are_told_and_change_nothing(host, in_full, architecture, monkeypatch):
    subject, settings, _, ground = in_full(architecture, 5, "euler")
    found = []
    for room, ahead in ((0, False), (2**30, False), (2**30, True)):
        monkeypatch.setattr(eoc, "_room", lambda device, room=room: room)
        monkeypatch.setattr(eoc, "_ahead", lambda device, ahead=ahead: ahead)
        trace = Trace()
        found.append(subject.sample(host.attach(subject.model, POLICIES["EOC"](ground), trace), **settings))
        run = trace.runs[0]
        assert run.notes == []
        assert run.expected_bytes == pytest.approx(run.peak_bytes, rel=0.05)
    assert all(torch.equal(out, found[0]) for out in found)


@pytest.mark.scenario("sampler")
@POLICY
@ARCHITECTURE
def test_every_sampler_of_the_host(host, in_full, architecture, name, record_property):
    """Close to the sampler without a cache, with less computed; or the same picture, and one sentence why."""
    unfit = {}
    for sampler in sampled(architecture, name, host.comfy.samplers.KSampler.SAMPLERS):
        subject, settings, stock, ground = in_full(architecture, STEPS.get(name, 5), sampler)
        trace = Trace()
        cached = subject.sample(host.attach(subject.model, POLICIES[name](ground), trace), **settings)
        run, error = trace.runs[0], close(cached, stock)
        helps = run.computed_fraction < 1 and 0 < error < BOUND and not run.notes
        declines = run.computed_fraction == 1 and error == 0 and len(run.notes) == 1
        if not (run.complete and (helps or declines)):
            unfit[sampler] = (run.computed_fraction, error, run.notes)
        record_property(f"sampler {sampler}", told(run, sampler))
    assert unfit == {}
