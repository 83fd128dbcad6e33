"""At what noise the model is called: what is taken for granted of a sampler that takes its steps one by one is so."""

from __future__ import annotations

import math
from itertools import count

import pytest
import torch
from priorcache.cache_core.policies import FORA, L2C, Forecast, Full
from priorcache.cache_core.sites import Action
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


def walking(comfy, name, wrappers=None, guided=None, **options):
    from priorcache.nodes.noise import walks

    sampler = comfy.samplers.ksampler(name, options) if options else comfy.samplers.sampler_object(name)
    return walks(sampler, object.__new__(guided or comfy.samplers.CFGGuider), wrappers or {}, ("PriorCache",))


def custom(host, model, conds, sigmas):
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        euler = host.comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)


class TestWalks:
    def test_euler_and_what_the_host_makes_of_it(self, comfy):
        found = {name for name in comfy.samplers.KSampler.SAMPLERS if walking(comfy, name)}
        assert found == {"euler", "ddim"}

    def test_not_with_noise_of_its_own(self, comfy):
        assert walking(comfy, "euler", s_churn=0.0)
        assert not walking(comfy, "euler", s_churn=0.5)
        assert not walking(comfy, "euler", s_churn=1e-9)

    @pytest.mark.parametrize("kind", ["outer_sample", "sampler_sample", "predict_noise"])
    def test_not_where_another_node_comes_between(self, comfy, kind):
        assert walking(comfy, "euler", {kind: {"PriorCache": [print]}})
        assert walking(comfy, "euler", {"apply_model": {"other": [print]}})
        assert not walking(comfy, "euler", {kind: {"PriorCache": [print], "other": [print]}})

    def test_not_a_sampler_of_another_node(self, comfy):
        from priorcache.nodes.noise import walks

        class Twice(comfy.samplers.KSAMPLER):
            def sample(self, *args, **kwargs):
                return super().sample(*args, **kwargs) + super().sample(*args, **kwargs)

        guider = object.__new__(comfy.samplers.CFGGuider)
        assert not walks(object(), guider, {}, ())
        assert walks(comfy.samplers.KSAMPLER(comfy.k_diffusion.sampling.sample_euler), guider, {}, ())
        assert not walks(Twice(comfy.k_diffusion.sampling.sample_euler), guider, {}, ())

    def test_not_a_guider_that_calls_the_model_in_a_way_of_its_own(self, comfy):
        from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG

        class Twice(Guider_Basic):
            def __call__(self, *args, **kwargs):
                return super().__call__(*args, **kwargs) + super().__call__(*args, **kwargs)

        class Elsewhere(Guider_Basic):
            def outer_predict_noise(self, *args, **kwargs):
                return super().outer_predict_noise(*args, **kwargs)

        assert all(walking(comfy, "euler", guided=kind) for kind in (Guider_Basic, Guider_DualCFG))
        assert not any(walking(comfy, "euler", guided=kind) for kind in (Twice, Elsewhere, object))

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

    def test_a_schedule_in_64_bits_is_told_in_those_of_the_sampler(self, host, model, conds, ahead, monkeypatch):
        sigmas, told = torch.linspace(9.0, 0.0, 7, dtype=torch.float64) / 1.7, []
        for waits in (False, True):
            monkeypatch.setattr(ahead, "_waits", lambda timestep, waits=waits: waits)
            trace = Trace()
            custom(host, host.attach(model, FORA(2), trace), conds, sigmas)
            told.append([moment.step.sigma for moment in trace.runs[0].moments])
        assert told[0] == told[1]

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
            calls = count()
            return sample_euler(
                lambda x, sigma, **k: sample(x, sigma * (0.9 if next(calls) == 4 else 1), **k), x, sigmas, **kwargs
            )

        monkeypatch.setattr("comfy.k_diffusion.sampling.sample_euler", restless)
        monkeypatch.setattr(ahead, "sample_euler", restless)
        trace = Trace()
        host.sample(host.attach(model, FORA(2), trace), steps=8)
        assert "computed everything from evaluation 5 on: its sampler was at noise" in trace.runs[0].notes[0]
        actions = {row.step: row.action for row in trace.runs[0].rows}
        assert [actions.get(step, Action.COMPUTE).value[0] for step in range(8)] == [*"ccrcrccc"]

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

    def test_of_a_run_that_computed_everything_nothing_was_decided(self, host, model, ahead, monkeypatch):
        monkeypatch.setattr(Moment, "reached", False)
        at = ahead.Noise.at
        monkeypatch.setattr(ahead.Noise, "at", lambda self, timestep, turn: at(self, timestep * 1.1, turn))
        trace = Trace()
        host.sample(host.attach(model, L2C(((1.0,),) * 4, ("blocks.0.attn",), 4), trace), steps=6)
        assert ["computed everything" in note for note in trace.runs[0].notes] == [True]

    @pytest.mark.parametrize(
        ("dtype", "waits"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)]
    )
    def test_sixteen_bits_are_read(self, comfy, dtype, waits):
        from priorcache.nodes.noise import _waits
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            assert _waits(torch.empty(1, dtype=dtype, device="cuda")) is waits
            assert not _waits(torch.empty(1, dtype=dtype))
