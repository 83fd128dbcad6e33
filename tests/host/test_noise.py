"""At what noise the model is called: what is taken for granted of a sampler that takes its steps one by one is so."""

from __future__ import annotations

import math

import pytest
import torch
from priorcache.cache_core.policies import FORA, Forecast, Full
from priorcache.cache_core.trace import Trace


class Moment:
    """An event of a device that gets to it when it is told to."""

    reached = True

    def record(self, stream):
        pass

    def query(self):
        return self.reached

    def synchronize(self):
        pass


@pytest.fixture
def ahead(comfy, monkeypatch):
    """A processor that runs ahead of its device, as beside CUDA; the device is this CPU, and never behind."""
    from priorcache.nodes import noise

    monkeypatch.setattr(noise, "_waits", lambda timestep: True)
    monkeypatch.setattr(torch.cuda, "Event", Moment)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(Moment, "reached", True)
    return noise


def walking(comfy, name, wrappers=None, **options):
    from priorcache.nodes.noise import walks

    return walks(
        comfy.samplers.sampler_object(name) if not options else comfy.samplers.ksampler(name, options),
        wrappers or {},
        ("PriorCache",),
    )


class TestWalks:
    def test_euler_and_what_the_host_makes_of_it(self, comfy):
        found = {name for name in comfy.samplers.KSampler.SAMPLERS if walking(comfy, name)}
        assert found == {"euler", "ddim"}

    def test_not_with_noise_of_its_own(self, comfy):
        assert walking(comfy, "euler", s_churn=0.0)
        assert not walking(comfy, "euler", s_churn=0.5)

    @pytest.mark.parametrize("kind", ["sampler_sample", "predict_noise"])
    def test_not_where_another_node_comes_between(self, comfy, kind):
        assert walking(comfy, "euler", {kind: {"PriorCache": [print]}})
        assert walking(comfy, "euler", {"apply_model": {"other": [print]}})
        assert not walking(comfy, "euler", {kind: {"PriorCache": [print], "other": [print]}})

    def test_not_a_sampler_of_another_node(self, comfy):
        from priorcache.nodes.noise import walks

        assert not walks(object(), {}, ())

    @pytest.mark.parametrize("scheduler", ["simple", "normal", "karras", "beta", "ddim_uniform", "sgm_uniform"])
    @pytest.mark.parametrize(("sampler", "denoise"), [("euler", 1.0), ("ddim", 1.0), ("euler", 0.5)])
    def test_every_call_is_where_the_schedule_says(self, host, model, monkeypatch, sampler, scheduler, denoise):
        from priorcache.nodes.noise import Noise

        calls = []
        read = Noise.at

        def at(self, timestep, turn):
            assert self.walks
            calls.append((read(self, timestep, turn), self.sigmas[turn]))
            return calls[-1][0]

        monkeypatch.setattr(Noise, "at", at)
        attached = host.attach(model, Full())
        host.sample(attached, steps=7, sampler=sampler, scheduler=scheduler, denoise=denoise)
        assert len(calls) >= 7
        assert all(math.isclose(told, taken, rel_tol=1e-6) for told, taken in calls)


class TestNoise:
    @pytest.mark.parametrize("policy", [FORA(2), FORA(2, level="model"), Forecast(2.0)], ids=lambda p: p.describe())
    @pytest.mark.parametrize("cfg", [1.0, 3.0])
    def test_the_picture_is_the_one_of_who_waits(self, host, model, ahead, monkeypatch, policy, cfg):
        settings = {"steps": 12, "cfg": cfg}
        monkeypatch.setattr(ahead, "_waits", lambda timestep: False)
        waited = host.sample(host.attach(model, policy), **settings)
        monkeypatch.setattr(ahead, "_waits", lambda timestep: True)
        trace = Trace()
        assert torch.equal(host.sample(host.attach(model, policy, trace), **settings), waited)
        assert trace.runs[0].notes == []

    def test_who_leaves_the_schedule_is_computed_from_when_it_is_seen(self, ahead):
        found = ahead.Noise([4.0, 3.0, 2.0, 1.0, 0.0], walks=True)
        Moment.reached = False
        assert found.at(torch.tensor([4.0, 4.0]), 0) == 4.0
        assert found.at(torch.tensor([3.5]), 1) == 3.0
        assert found.astray() is None  # the device is not there yet
        Moment.reached = True
        assert found.astray() == "its sampler was at noise 3.5 in step 2, where its schedule has 3"
        assert found.at(torch.tensor([1.5]), 2) == 1.5
        assert found.astray() is None

    def test_calls_beyond_the_schedule_are_read(self, ahead):
        found = ahead.Noise([4.0, 0.0], walks=True)
        assert [found.at(torch.tensor([4.0]), 0), found.at(torch.tensor([2.5]), 1)] == [4.0, 2.5]

    def test_a_run_says_that_it_was_astray(self, host, model, ahead, monkeypatch):
        from comfy.k_diffusion.sampling import sample_euler

        def restless(sample, x, sigmas, **kwargs):
            return sample_euler(
                lambda x, sigma, **k: sample(x, sigma * (0.9 if sigma[0] < 2 else 1), **k), x, sigmas, **kwargs
            )

        monkeypatch.setattr("comfy.k_diffusion.sampling.sample_euler", restless)
        monkeypatch.setattr(ahead, "sample_euler", restless)
        trace = Trace()
        host.sample(host.attach(model, FORA(2), trace), steps=8)
        assert "computed everything from evaluation" in trace.runs[0].notes[0]
        assert "its sampler was at noise" in trace.runs[0].notes[0]

    def test_the_last_step_is_looked_at_when_sampling_is_done(self, host, model, ahead, monkeypatch):
        monkeypatch.setattr(Moment, "reached", False)
        at = ahead.Noise.at
        monkeypatch.setattr(
            ahead.Noise, "at", lambda self, timestep, turn: at(self, timestep * (1.1 if turn == 5 else 1), turn)
        )
        trace = Trace()
        host.sample(host.attach(model, FORA(2), trace), steps=6)
        assert (
            trace.runs[0]
            .notes[0]
            .startswith("FORA N=2 (published) decided by the wrong noise: its sampler was at noise")
        )

    @pytest.mark.parametrize(
        ("dtype", "waits"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)]
    )
    def test_sixteen_bits_are_read(self, comfy, dtype, waits):
        from priorcache.nodes.noise import _waits
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            assert _waits(torch.empty(1, dtype=dtype, device="cuda")) is waits
            assert not _waits(torch.empty(1, dtype=dtype))
