"""Forecast, search and plan in the host, on a tiny DiT and through the nodes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from priorcache.cache_core.corrector import Corrector
from priorcache.cache_core.policies import FORA, Forecast
from priorcache.cache_core.sites import Action, Schedule
from priorcache.cache_core.trace import Trace
from priorcache.errors import SettingError
from priorcache.priors.auto import Auto
from priorcache.priors.plan import Plan
from priorcache.priors.prior import Prior, PriorError

DEMO = Path(__file__).resolve().parents[2] / "demo"
SETTINGS = {"steps": 10, "sampler": "euler", "scheduler": "karras"}


def sampled(host, model, policy, measure="off", **changes):
    """(latents, the run's trace)."""
    trace = Trace()
    return host.sample(host.attach(model, policy, trace, measure), **SETTINGS | changes), trace.runs[0]


def by_sampler(host, model, policy, sampler, trace=None, steps=10, sigmas=None, **changes):
    """Latents sampled by a SAMPLER, as SamplerCustom has it."""
    if sigmas is None:
        sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", steps)
    latent, labels = torch.zeros(1, 3, 16, 16), [host.dit.conditioning(torch.tensor([n])) for n in (1, -1)]
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, 0)
        attached = host.attach(model, policy, trace)
        return host.comfy.sample.sample_custom(attached, noise, 1.5, sampler, sigmas, *labels, latent, **changes)


def computed(run) -> list[int]:
    return sorted({row.step for row in run.rows if row.action is Action.COMPUTE})


def test_computes_what_it_was_told_and_skips_the_rest(host, model):
    out, run = sampled(host, model, Forecast(2.0))
    assert computed(run) == [0, 2, 4, 6, 8]
    assert run.evaluations == 10
    exact = host.sample(model, **SETTINGS)
    assert 0 < (out - exact).norm() / exact.norm() < 1


def test_computing_everything_is_stock(host, model):
    out, run = sampled(host, model, Forecast(1.0))
    assert torch.equal(out, host.sample(model, **SETTINGS))
    assert computed(run) == list(range(10))


@pytest.fixture
def flux(host):
    """The demo's, and its prompts."""
    from priorcache.nodes.demo import conditioning

    model = host.comfy.sd.load_diffusion_model(str(DEMO / "shapes-flux.safetensors"))
    return model, conditioning(["red circle on yellow", "green star on blue"])


class TestCorrector:
    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
    def test_comes_closer_for_the_same_evaluations(self, host, flux, sampler):
        model, prompts = flux
        settings = {"steps": 16, "sampler": sampler, "scheduler": "simple", "cfg": 1.0}
        settings |= {"positive": prompts, "negative": prompts, "latent": torch.zeros(2, 16, 16, 16)}
        exact = host.sample(model, **settings)
        errors, runs = {}, {}
        for corrector in ("off", "auto"):
            trace = Trace()
            out = host.sample(host.attach(model, Forecast(2.0, corrector=corrector), trace), **settings)
            errors[corrector], runs[corrector] = ((out - exact).norm() / exact.norm()).item(), trace.runs[0]
        assert errors["auto"] < 0.8 * errors["off"]
        assert computed(runs["auto"]) == computed(runs["off"])
        assert (runs["auto"].record["settings"]["corrector"], runs["off"].record["settings"]["corrector"]) == (
            "linear",
            "off",
        )

    @pytest.mark.parametrize("corrector", ["linear", "quadratic"])
    def test_leaves_a_run_that_computes_everything_bit_for_bit(self, host, model, corrector):
        out, _ = sampled(host, model, Forecast(1.0, corrector=corrector))
        assert torch.equal(out, host.sample(model, **SETTINGS))

    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_previews_show_what_the_model_tells(self, host, model, sampler, masked, monkeypatch):
        """The picture of a step, (x - sigma F), is what came of the network; what steers the sampler is not in it."""
        told, shown, given = [], [], []

        correct = Corrector.__call__

        def call(self, *about, **of):
            given.append(correct(self, *about, **of))
            told.append(given[-1] - self.excess)
            return given[-1]

        monkeypatch.setattr(Corrector, "__call__", call)
        mask = torch.ones(1, 1, 16, 16)
        mask[..., :8] = 1.0 - masked
        by_sampler(
            host, model, Forecast(2.0, corrector="linear"), host.comfy.samplers.sampler_object(sampler), steps=12,
            noise_mask=mask, callback=lambda step, x0, x, total: shown.append(x0),
        )  # fmt: skip
        assert len(shown) == 12
        assert max((a - b).abs().max() for a, b in zip(given, told, strict=True)) > 1e-3
        for picture, true in zip(shown, told, strict=True):
            assert torch.allclose(picture, true * mask, atol=1e-5)

    def test_memory_that_runs_out_in_it_drops_the_cache(self, host, model, monkeypatch):
        def full(*_):
            raise torch.OutOfMemoryError

        monkeypatch.setattr(Corrector, "_found", full)
        out, run = sampled(host, model, Forecast(2.0, corrector="linear"))
        assert out.isfinite().all()
        assert "memory ran out" in run.notes[0]
        assert run.moments[-1].nbytes == 0
        assert computed(run)[-2:] == [8, 9]

    def test_measuring_changes_no_picture(self, host, model):
        policy = Forecast(2.0, corrector="linear")
        off, *rest = (
            host.sample(host.attach(model, policy, measure=m), **SETTINGS) for m in ("off", "errors", "truth")
        )
        assert all(torch.equal(off, other) for other in rest)

    def test_says_where_it_was_asked_for_and_cannot_serve(self, host, model):
        _, run = sampled(host, model, Forecast(2.0, corrector="linear"), sampler="ipndm")
        assert "corrects nothing with the sampler ipndm" in run.notes[0]
        assert sampled(host, model, Forecast(2.0), sampler="ipndm")[1].notes == []

    def test_holds_nothing_where_everything_is_computed(self, host, model):
        trace = Trace()
        attached = host.attach(model, Forecast(2.0, corrector="linear"), trace, "errors")
        host.sample(attached, **SETTINGS | {"steps": 8})
        assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes

    def test_lets_go_of_a_sampler_that_leaves_the_schedule(self, host, model):
        """euler with churn adds noise: what it asks for is not the schedule's."""
        sampler = host.comfy.samplers.ksampler("euler", {"s_churn": 2.0})
        found, traces = [], [Trace(), Trace()]
        for corrector, trace in zip(("linear", "off"), traces, strict=True):
            torch.manual_seed(5)
            found.append(by_sampler(host, model, Forecast(2.0, corrector=corrector), sampler, trace))
        assert torch.equal(*found)
        for trace in traces:
            *_, note = trace.runs[0].notes
            assert note.endswith(" computed everything from evaluation 1 on: the sampler leaves its schedule.")
            assert computed(trace.runs[0]) == list(range(10))


class TestASamplerAroundAnother:
    """As Detail Daemon and others wrap one: the noise that the inner one adds is added all the same."""

    @staticmethod
    def around(host, name: str, lowered: float = 1.0, own: str = "outer_sampler"):
        def outer_sampler(model, x, sigmas, wrapped_sampler=None, **kwargs):
            def asked(x, sigma, **extra):
                return model(x, sigma * (lowered if sigma[0] < 0.6 * sigmas[0] else 1.0), **extra)

            asked.inner_model = model.inner_model
            return wrapped_sampler.sampler_function(asked, x, sigmas, **kwargs, **wrapped_sampler.extra_options)

        outer_sampler.__name__ = own
        inner = host.comfy.samplers.ksampler(name)
        return host.comfy.samplers.KSAMPLER(outer_sampler, extra_options={"wrapped_sampler": inner})

    @pytest.mark.parametrize(
        ("name", "said"), [("euler_ancestral", "adds noise"), ("heun", "calls the model several times per step")]
    )
    def test_is_known_by_what_it_works_around(self, host, model, name, said):
        trace = Trace()
        by_sampler(host, model, Forecast(2.0), self.around(host, name), trace)
        assert f"the sampler outer_sampler of {name} {said}" in trace.runs[0].notes[0]

    def test_serves_where_it_adds_none(self, host, model):
        trace = Trace()
        by_sampler(host, model, Forecast(2.0), self.around(host, "euler"), trace)
        assert len(computed(trace.runs[0])) == 5
        assert trace.runs[0].about.startswith("outer_sampler of euler, ")

    @pytest.mark.parametrize(("own", "every_second"), [("detail_daemon_sampler", True), ("outer_sampler", False)])
    @pytest.mark.parametrize("policy", [FORA(2, "aligned"), Forecast(2.0)], ids=lambda p: p.describe())
    def test_whose_noise_is_not_what_is_there_keeps_step_where_it_is_known_to(
        self, host, model, policy, own, every_second
    ):
        trace, sampler = Trace(), self.around(host, "euler", 0.4, own)
        cached = along(host, host.attach(model, policy, trace), torch.linspace(10, 0, 13), sampler)
        assert torch.isfinite(cached).all()
        run = trace.runs[0]
        assert ([moment.step.position for moment in run.moments] == list(range(12))) == every_second
        if every_second:
            assert (len(computed(run)), run.notes) == (6, [])

    @pytest.mark.parametrize(
        ("options", "name", "often"),
        [({"rk_type": "gauss-legendre_2s"}, "rk gauss-legendre_2s", True), ({"rk_type": "euler", "eta": 0.0}, "rk euler", False), ({}, "res_2m", True)],
    )  # fmt: skip
    def test_those_of_res4lyf_are_told_apart(self, host, model, options, name, often):
        def sample_res_2m(model, x, sigmas, **_):
            return x

        sampler = host.comfy.samplers.KSAMPLER(sample_res_2m, extra_options=options)
        schedule = host.node.schedule_of(model, sampler, torch.linspace(1, 0, 13), 1.0)
        assert schedule.sampler == name
        assert ("several times per step" in (Forecast(2.0).objection(schedule) or "")) == often
        noisy = host.comfy.samplers.KSAMPLER(sample_res_2m, extra_options=options | {"rk_type": "euler", "eta": 0.5})
        assert "adds noise" in Forecast(2.0).objection(
            host.node.schedule_of(model, noisy, torch.linspace(1, 0, 13), 1.0)
        )


def test_of_two_steps_at_almost_the_same_noise_it_is_the_ones_whose_turn_it_is(host, model):
    trace = Trace()
    sigmas = torch.tensor([9.0, 9.0 * (1 - 5e-5), *torch.linspace(7.0, 0.0, 11)])
    by_sampler(host, model, Forecast(2.0, corrector="off"), host.comfy.samplers.ksampler("euler"), trace, sigmas=sigmas)
    (run,) = trace.runs
    assert run.notes == []
    assert computed(run) == list(Forecast(2.0).prepared(Schedule(12, tuple(sigmas.tolist()), "euler", "EPS")).computed)


def test_a_range_is_compared_as_the_host_does(host):
    """A limit of 8/9 is below the noise of that step in 64 bits, and not in 32."""
    from priorcache.nodes.attach import _active

    limit, sigma = 8 / 9, torch.tensor(8 / 9).item()
    assert sigma > limit
    for cond in ({"uuid": 1, "timestep_start": limit}, {"uuid": 1, "timestep_end": limit}):
        assert _active([cond], sigma) == (("1",),)
        assert _active([cond], sigma * (1.01 if "timestep_start" in cond else 0.99)) == ()


def test_a_model_is_forecast_as_what_it_is_sampled_as(host, model):
    """A node in between may sample a model of noise as a flow."""
    import comfy.model_sampling

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = model.clone()
    flow.add_object_patch("model_sampling", Flow(model.model.model_config))
    _, run = sampled(host, flow, Forecast(2.0), scheduler="simple")
    assert run.record["settings"]["coordinate"] == "sigma"
    _, run = sampled(host, model, Forecast(2.0), scheduler="simple")
    assert run.record["settings"]["coordinate"] == "step"


def test_a_corrector_forgets_what_other_guidance_said(host, model, monkeypatch):
    """A node such as CFG Override has another cfg for some of the steps."""
    cleared, original = [], Corrector.clear

    def watched(self):
        cleared.append(len(cfgs))
        return original(self)

    def overriding(executor, x, timestep, *rest):
        guider, begun = executor.class_obj, executor.class_obj.cfg
        guider.cfg = 1.5 if len(cfgs) < 4 else 3.0
        cfgs.append(guider.cfg)
        try:
            return executor(x, timestep, *rest)
        finally:
            guider.cfg = begun

    monkeypatch.setattr(Corrector, "clear", watched)
    kind = host.comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    for first in (True, False):  # on either side of the cache
        cfgs: list[float] = []
        theirs = model.clone() if first else host.attach(model, Forecast(2.0, corrector="linear"))
        theirs.add_wrapper(kind, overriding)
        attached = host.attach(theirs, Forecast(2.0, corrector="linear")) if first else theirs
        cleared.clear()
        host.sample(attached, **SETTINGS)
        assert cfgs == [1.5] * 4 + [3.0] * 6
        assert [at for at in cleared if 1 < at < 10] == [5]  # and where the run begins and ends


@pytest.mark.parametrize("sampler", [
    "euler", "dpmpp_2m", "ddim", "lms", "ipndm", "ipndm_v", "deis", "res_multistep", "gradient_estimation", "euler_cfg_pp",
    "dpmpp_2m_cfg_pp", "uni_pc", "uni_pc_bh2",
])  # fmt: skip
def test_serves_samplers_of_one_call_per_step(host, model, sampler):
    out, run = sampled(host, model, Forecast(2.0), sampler=sampler)
    assert run.notes == []
    assert len(computed(run)) <= 6 < run.evaluations
    assert out.isfinite().all()


@pytest.mark.parametrize("sampler", [
    "heun", "heunpp2", "dpm_2", "dpm_fast", "dpm_adaptive", "exp_heun_2_x0", "euler_ancestral", "dpm_2_ancestral",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm", "er_sde", "seeds_2", "seeds_3",
    "sa_solver", "sa_solver_pece", "res_multistep_ancestral",
])  # fmt: skip
def test_declines_the_others_and_leaves_them_stock(host, model, sampler):
    out, run = sampled(host, model, Forecast(2.0), sampler=sampler, steps=5)
    assert len(run.notes) == 1
    assert not run.rows
    assert torch.equal(out, host.sample(model, **SETTINGS | {"sampler": sampler, "steps": 5}))


def test_every_sampler_of_the_host_is_of_one_kind_or_the_other(host):
    """Where a new one appears in the host, it shows here: try it, and enter it in one of the two lists above."""
    samplers = host.comfy.samplers.KSampler.SAMPLERS
    ours = {mark for test in (test_serves_samplers_of_one_call_per_step, test_declines_the_others_and_leaves_them_stock)
            for mark in test.pytestmark[0].args[1]}  # fmt: skip
    known = ours | {n for n in samplers if any(p in n for p in ("ancestral", "sde", "_cfg_pp"))}
    assert set(samplers) <= known


def test_a_plan_for_other_noise_declines_with_a_sentence(host, model):
    plan = Forecast(computed=(0, 4), sigmas=(15.0, 9.0, 5.0, 3.0, 1.5, 0.5, 0.0))
    _, run = sampled(host, model, plan)
    assert "its plan is for noise from 15 to 0.5" in run.notes[0]


@pytest.mark.parametrize("policy", [Forecast(2.0), Forecast(computed=(0, 4), sigmas=(15.0, 9.0, 5.0, 3.0, 1.5, 0.0))])
def test_a_schedule_without_steps_is_left_to_the_host(host, model, policy):
    """As SplitSigmas gives it, split at the first step."""
    trace = Trace()
    stock, cached = (along(host, of, torch.tensor([14.6])) for of in (model, host.attach(model, policy, trace)))
    assert torch.equal(cached, stock)
    assert trace.runs == []


def test_where_a_node_has_no_steps_left_what_it_sampled_in_an_earlier_prompt_is_forgotten(host, model):
    from comfy_execution.utils import CurrentNodeContext

    trace = Trace()
    cached = host.attach(model, Forecast(2.0), trace)
    for prompt, sigmas, runs in (("p1", [14.6, 1.0, 0.0], 1), ("p2", [14.6], 0)):
        with CurrentNodeContext(prompt, "5"):
            along(host, cached, torch.tensor(sigmas))
        assert len(trace.runs) == runs


def test_runs_over_a_part_of_the_noise_are_told_apart(host, model):
    """Two stages, as of SplitSigmas or KSampler (Advanced)."""
    trace, sigmas = Trace(), host.comfy.samplers.KSampler(model, 12, "cpu", "euler", "normal").sigmas
    for part in (sigmas, sigmas[:8], sigmas[7:]):
        along(host, host.attach(model, Forecast(2.0), trace), part)
    whole, first, second = (run.about.removesuffix(", 1 x 3 x 16 x 16") for run in trace.runs)
    assert whole == "euler, 12 steps"
    assert first == f"euler, 7 steps, noise {sigmas[0]:.3g} to {sigmas[7]:.3g}"
    assert second == f"euler, 5 steps, noise {sigmas[7]:.3g} to 0"


@pytest.mark.parametrize("policy", [Forecast(2.0), Forecast(computed=(0, 4), sigmas=(15.0, 9.0, 5.0, 3.0, 1.5, 0.0)), FORA(2), Auto(3.0)],
                         ids=lambda p: p.describe())  # fmt: skip
def test_rising_noise_is_computed_and_said_once(host, model, policy):
    """As FlipSigmas gives it, to find the noise of a picture."""
    trace, sigmas = Trace(), torch.linspace(1e-4, 10, 12)
    stock, cached = (along(host, of, sigmas) for of in (model, host.attach(model, policy, trace)))
    assert torch.equal(cached, stock)
    assert [note for note in trace.runs[0].notes if "computed everything" in note] == trace.runs[0].notes[-1:]
    assert "the noise of this schedule rises" in trace.runs[0].notes[-1]


def along(host, model, sigmas, sampler=None):
    """Sampled by SamplerCustom's function."""
    import comfy.sample
    import comfy.samplers

    latent, labels = torch.ones(1, 3, 16, 16), host.dit.conditioning(torch.tensor([1]))
    sampler = sampler or comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, torch.zeros_like(latent), 1.5, sampler, sigmas, labels, labels, latent, disable_pbar=True
        )


@pytest.fixture(scope="module")
def nodes(host):
    import priorcache.nodes as pack

    pack.register_folder()
    return {n.GET_SCHEMA().node_id: n for n in pack.NODES}


@pytest.fixture(scope="module")
def prior(host, nodes, conds):
    with torch.inference_mode():
        return nodes["PriorCacheCalibrate"].execute(
            host.model(), *conds, {"samples": torch.zeros(2, 3, 16, 16)}, seed=1, runs=1, steps=10, cfg=1.5, sampler_name="euler",
            scheduler="karras", denoise=1.0, longest_gap=1, mean_features=False,
        ).args[0]  # fmt: skip


def search(nodes, prior, model, conds, **changes):
    settings = {"seed": 40, "samplings": 12.0, "speedups": "2, 2.5"} | changes
    with torch.inference_mode():
        return (
            nodes["PriorCacheSearch"]
            .execute(prior, model, *conds, {"samples": torch.zeros(2, 3, 16, 16)}, **settings)
            .args
        )


class TestNodes:
    def test_from_prior_to_plan_to_picture(self, host, nodes, model, conds, prior, tmp_path):
        planned, image, text = search(nodes, prior, model, conds)
        assert [p.evaluations for p in planned.plans] == [5, 4]
        assert all(p.error <= p.unplanned for p in planned.plans)
        assert image.ndim == 4
        assert "5 of 10 steps (2.00x)" in text
        planned = Prior.load(planned.save(tmp_path / "p.safetensors"))
        policy, image, text = nodes["PriorCachePlan"].execute(planned, "speed-up", 2.0, model).args
        assert image.ndim == 4
        assert "5 of 10 steps computed, 2.00x" in text
        assert text.endswith(f" Searched on DiT with {planned.subject.settings}.")
        out, run = sampled(host, model, policy, seed=41)
        assert len(computed(run)) == 5
        exact = host.sample(model, **SETTINGS, seed=41)
        error = ((out - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean().item()
        assert error == pytest.approx(planned.plans[0].error, rel=1e-3)  # judged by the next seed

    @pytest.mark.usefixtures("undrawn")
    def test_what_a_plan_promised_is_told_beside_what_came(self, host, nodes, model, conds, prior):
        from priorcache.plots import words
        from priorcache.plots.panels import Grid

        planned, *_ = search(nodes, prior, model, conds)
        policy = nodes["PriorCachePlan"].execute(planned, "speed-up", 2.0).args[0]
        _, run = sampled(host, model, policy, seed=41, measure="truth")
        (plan,) = [p for p in planned.plans if p.evaluations == 5]
        promise = (
            f"Its plan promised 2.00x in evaluations with a relative error of {plan.error:.3f} in the final latent"
        )
        assert promise in words.summary(run, planned)
        later = dataclasses.replace(plan, settings=plan.settings | {"corrector": "of a later version"})
        assert promise in words.summary(run, planned.planned((later, plan)))
        assert "promised" not in words.summary(run)
        table = Grid.of(run)
        expected = table.expected(planned, run.record)
        assert np.isfinite(expected).tolist() == (table.kinds != "computed").tolist()
        np.testing.assert_allclose(expected, table.true, rtol=0.5)  # along the uncached path, of other pictures
        _, other = sampled(host, model, Forecast(2.0), seed=41)
        assert "promised" not in words.summary(other, planned)
        assert Grid.of(other).expected(planned, other.record) is not None
        for changes in ({"steps": 20}, {"scheduler": "normal"}):
            _, elsewhere = sampled(host, model, policy, **changes)
            assert Grid.of(elsewhere).expected(planned, elsewhere.record) is None
            assert "promised" not in words.summary(elsewhere, planned)
        _, guided = sampled(host, model, policy, cfg=4.0)
        assert "promised" not in words.summary(guided, planned)
        settings = {k: v for k, v in plan.settings.items() if k not in ("sampler", "cfg", "corrector")}
        assert plan.settings["corrector"] == "off"
        assert promise in words.summary(run, planned.planned([dataclasses.replace(plan, settings=settings)]))

    @pytest.mark.parametrize(
        ("goal", "value"), [("computed steps", 0.3), ("speed-up", float("nan")), ("error", float("inf"))]
    )
    def test_a_value_that_is_no_goal_is_refused(self, nodes, prior, goal, value):
        plan = Plan("FORA", {"interval": 2, "level": "model"}, 10, 5, 0.1, 0.2, 4)
        with pytest.raises(SettingError, match="Plan Policy: value is"):
            nodes["PriorCachePlan"].execute(prior.planned([plan]), goal, value)

    def test_a_plan_that_does_not_tell_its_noise_is_refused(self, nodes, prior):
        """In a run of more steps, all behind its last one were extrapolated."""
        plan = Plan("Forecast", {"computed": [0, 1, 3, 5, 7]}, 10, 5, 0.02, 0.03, 1)
        with pytest.raises(SettingError, match=r"does not tell the noise .*; search again with Search Plans"):
            nodes["PriorCachePlan"].execute(prior.planned([plan]), "speed-up", 2.0)

    @pytest.mark.usefixtures("undrawn")
    def test_a_plan_serves_another_number_of_steps(self, host, nodes, model, conds, prior):
        planned, *_ = search(nodes, prior, model, conds, samplings=1.0, speedups="2")
        policy = nodes["PriorCachePlan"].execute(planned, "computed steps", 5.0).args[0]
        _, run = sampled(host, model, policy, steps=20)
        assert "was planned for 10 steps, and this run has 20: the share of computed steps is kept" in run.notes[0]
        assert len(computed(run)) == 10

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("changes", [{"sampler": "dpmpp_2m"}, {"cfg": 1.0}], ids=["sampler", "guidance"])
    @pytest.mark.parametrize("earlier", [True, False])
    def test_a_plan_of_another_run_is_left_for_what_needs_none(
        self, host, nodes, model, conds, prior, changes, earlier
    ):
        """Plans of earlier versions do not say what they are for: their prior does."""
        planned, *_ = search(nodes, prior, model, conds)
        if earlier:
            old = [{k: v for k, v in p.settings.items() if k not in ("sampler", "cfg")} for p in planned.plans]
            plans = [dataclasses.replace(p, settings=s) for p, s in zip(planned.plans, old, strict=True)]
            planned = planned.planned(plans)
        policy = nodes["PriorCachePlan"].execute(planned, "computed steps", 5.0).args[0]
        out, run = sampled(host, model, policy, **changes)
        assert "was planned for" in run.notes[0]
        assert torch.equal(out, sampled(host, model, Forecast(2.0), **changes)[0])
        assert sampled(host, model, policy)[1].notes == []

    @pytest.mark.usefixtures("undrawn")
    def test_a_search_goes_on_where_it_was_stopped(self, nodes, model, conds, prior, samplings):
        from priorcache.nodes import searching

        samplings.stop = 6
        with pytest.raises(KeyboardInterrupt):
            search(nodes, prior, model, conds, seed=41)
        samplings.clear()
        first, *_ = search(nodes, prior, model, conds, seed=41)
        went_on = len(samplings)
        searching._SEARCHES.clear()
        samplings.clear()
        second, *_ = search(nodes, prior, model, conds, seed=41)
        assert first.plans == second.plans
        assert went_on < len(samplings)

    @pytest.mark.usefixtures("undrawn")
    def test_a_search_goes_on_where_comfyui_was_stopped(self, nodes, model, conds, prior, samplings):
        from priorcache.nodes import searching

        samplings.stop = 10
        with pytest.raises(KeyboardInterrupt):
            search(nodes, prior, model, conds, seed=43)
        assert len(list(searching.searches().glob("*.json"))) == 1  # the judge was not asked yet
        searching._SEARCHES.clear()  # what a new session knows
        samplings.clear()
        first, *_ = search(nodes, prior, model, conds, seed=43)
        went_on = len(samplings)
        assert list(searching.searches().glob("*.json")) == []
        searching._SEARCHES.clear()
        samplings.clear()
        second, *_ = search(nodes, prior, model, conds, seed=43)
        assert first.plans == second.plans
        # of the nine, two are the references, which are sampled anew
        assert went_on == len(samplings) - 7

    def test_the_first_pictures_of_a_search_are_those_of_all(self, host, model):
        """Each has a label, a mask and noise of its own."""
        from priorcache.nodes.sampling import Sampling
        from priorcache.nodes.searching import Sampler

        told, untold = host.dit.conditioning(torch.arange(8)), host.dit.conditioning(torch.full((8,), -1))
        masks = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 1, 16, 16)
        sampling = Sampling(told, untold, torch.zeros(8, 3, 16, 16), 6, 1.5, "euler", "karras", 1.0, masks)
        with torch.inference_mode():
            sample = Sampler(sampling, model, 7)
            every, first = sample(FORA(2)), sample(FORA(2), 2)
        torch.testing.assert_close(first.latents, every.latents[:2])
        assert first.cost == pytest.approx(every.cost)

    def test_a_batch_is_sampled_once_per_run_each_with_the_next_seed(self, host, model):
        """For models that fit one picture at a time."""
        from priorcache.nodes.sampling import Sampling
        from priorcache.nodes.searching import Sampler

        labels = host.dit.conditioning(torch.tensor([3])), host.dit.conditioning(torch.tensor([-1]))
        sampling = Sampling(*labels, torch.zeros(1, 3, 16, 16), 6, 1.5, "euler", "karras")
        with torch.inference_mode():
            sample = Sampler(sampling, model, 7, runs=3)
            every, first = sample(FORA(2)), sample(FORA(2), 2)
            each = [Sampler(sampling, model, seed)(FORA(2)) for seed in (7, 8, 9)]
        assert torch.equal(every.latents, torch.cat([one.latents for one in each]))
        assert torch.equal(first.latents, every.latents[:2])
        assert first.cost == pytest.approx(every.cost) == pytest.approx(each[0].cost)

    @pytest.mark.usefixtures("undrawn")
    def test_a_search_of_several_runs_judges_as_many_pictures(self, nodes, model, conds, prior):
        planned, _, text = search(nodes, prior, model, conds, runs=2, samplings=4.0)
        assert [plan.pictures for plan in planned.plans] == [4, 4]
        assert "samplings of 4 pictures beside the two uncached ones" in text

    @pytest.mark.parametrize("what", ["sampler", "scheduler"])
    def test_what_another_pack_brought_is_asked_for_by_name(self, nodes, model, conds, prior, what):
        """The host itself would take its first scheduler in place of one that it does not have."""
        shared = dataclasses.replace(prior, subject=dataclasses.replace(prior.subject, **{what: "from_a_pack"}))
        with pytest.raises(PriorError, match=f"made with the {what} 'from_a_pack', which this ComfyUI does not have"):
            search(nodes, shared, model, conds)

    @pytest.mark.usefixtures("undrawn")
    def test_what_cannot_be_planned_is_said(self, nodes, model, conds, prior):
        with pytest.raises(PriorError, match="holds no plans"):
            nodes["PriorCachePlan"].execute(prior, "speed-up", 2.0)
        for bad in ("fast", "1", "0.5, 2", "9", ""):
            with pytest.raises(ValueError, match="speedups is"):
                search(nodes, prior, model, conds, speedups=bad)

    @pytest.mark.usefixtures("undrawn")
    def test_a_sampler_that_is_another_inside_is_known_by_what_it_is(self, host, nodes, model, conds):
        """dpm_fast calls the model as often as there are steps, but not once per step."""
        with torch.inference_mode():
            fast = nodes["PriorCacheCalibrate"].execute(
                model, *conds, {"samples": torch.zeros(2, 3, 16, 16)}, seed=1, runs=1, steps=12, cfg=1.5, sampler_name="dpm_fast",
                scheduler="karras", denoise=1.0, longest_gap=1, mean_features=False,
            ).args[0]  # fmt: skip
        assert fast.evaluations == 12
        with pytest.raises(PriorError, match="nothing to plan: the sampler dpm_fast calls the model several times"):
            search(nodes, fast, model, conds)

    @pytest.mark.usefixtures("undrawn")
    def test_plans_are_searched_with_the_mask_of_the_latent(self, nodes, model, conds, prior):
        """Outside of it nothing is sampled, and nothing missing."""
        mask = torch.zeros(1, 1, 16, 16)
        latent = {"samples": torch.ones(2, 3, 16, 16), "noise_mask": mask}
        with torch.inference_mode():
            planned = nodes["PriorCacheSearch"].execute(
                prior, model, *conds, latent, seed=40, samplings=1.0, speedups="2"
            )
        assert planned.args[0].plans[0].error < 1e-6

    def test_forecast_node(self, nodes):
        assert nodes["PriorCacheForecast"].execute(3.0).args[0] == Forecast(3.0)
        assert nodes["PriorCacheForecast"].execute(2.0, "sigma", "linear").args[0].order == 1
        assert nodes["PriorCacheForecast"].execute(2.0, corrector="off").args[0].corrector == "off"
