"""What the cache will take is told and declared before sampling, and can be made less."""

import inspect
import re
from functools import partial

import pytest
import subjects
import torch
from priorcache.cache_core.codecs import CODECS
from priorcache.cache_core.policies import FORA, GOC, Forecast, Full
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import Trace
from subjects import close

ALIGNED = FORA(2, "aligned")
NETWORK = FORA(2, "aligned", level="model")
POLICIES = pytest.mark.parametrize("policy", [ALIGNED, NETWORK], ids=["branches", "network"])
STORES = pytest.mark.parametrize("store", CODECS)

LLAMA = {"conditioning_llama3": torch.linspace(-1, 1, 2 * 5 * subjects.WORDS).reshape(1, 2, 5, -1)}
EDITED = {"attention_mask": torch.ones(1, 5, dtype=torch.long), "reference_latents": [torch.zeros(1, 16, 8, 12)]}
FURTHER = {
    "hidream": (subjects.hidream, LLAMA),
    "hidream e1": (subjects.hidream, LLAMA | {"concat_latent_image": torch.zeros(1, 16, 12, 12)}),
    "omnigen2": (subjects.omnigen2, EDITED),
    "boogu": (subjects.boogu, EDITED),
    "joyimage": (subjects.joyimage, {"reference_latents": [torch.zeros(1, 16, 1, 8, 12)]}),
    "wan bernini": (subjects.wan, {"context_latents": [torch.zeros(1, 16, n, 8, 12) for n in (1, 3)]}),
    "wan scail": (subjects.scail, {"pose_video_latent": torch.zeros(1, 16, 3, 4, 4)}),
    "wan phantom": (subjects.wan, {"time_dim_concat": torch.zeros(1, 16, 2, 8, 8)}),
    "krea 2 references that nobody places": (subjects.krea2, {"reference_latents": [torch.zeros(1, 16, 1, 8, 12)]}),
    "krea 2 references": (
        subjects.krea2,
        {"reference_latents": [torch.zeros(1, 16, 1, 8, 12)], "reference_latents_method": "index_timestep_zero"},
    ),
}
"""A model -> how to make it, and what its prompts bring along."""
NEWER = {"context_latents"}
"""What old hosts do not look for in a prompt."""


@pytest.fixture
def required(host, monkeypatch):
    """Sample, and tell what the host meant to need: (memory required, the least it would do with)."""

    def call(model, **settings) -> tuple[float, float]:
        seen = []
        load = host.comfy.model_management.load_models_gpu

        def spy(models, memory_required=0, minimum_memory_required=None, **kwargs):
            seen.append((memory_required, minimum_memory_required))
            return load(
                models, memory_required=memory_required, minimum_memory_required=minimum_memory_required, **kwargs
            )

        monkeypatch.setattr(host.comfy.model_management, "load_models_gpu", spy)
        host.sample(model, **settings)
        monkeypatch.setattr(host.comfy.model_management, "load_models_gpu", load)
        return seen[0]

    return call


class TestTold:
    @POLICIES
    @STORES
    @pytest.mark.parametrize(
        "settings", [{}, {"cfg": 1.0}, {"size": (24, 10), "batch": 3, "labels": (1, 2, 3)}], ids=str
    )
    def test_before_sampling_within_five_percent_of_what_is_measured(self, host, model, policy, store, settings):
        trace = Trace()
        host.sample(host.attach(model, policy, trace, store=store), **settings)
        assert trace.runs[0].expected_bytes == pytest.approx(trace.runs[0].peak_bytes, rel=0.05)
        assert trace.runs[0].peak_bytes > 0

    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
    @pytest.mark.parametrize("corrector", ["linear", "quadratic"])
    def test_with_what_a_corrector_holds(self, host, model, sampler, corrector):
        trace = Trace()
        policy = Forecast(2.0, corrector=corrector)
        host.sample(host.attach(model, policy, trace), steps=12, sampler=sampler, batch=2, labels=(1, 2))
        assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes > 0

    @pytest.mark.parametrize("kind", FURTHER)
    def test_for_what_comes_with_the_prompt(self, host, kind):
        make, further = FURTHER[kind]
        subject, trace = make(), Trace()
        if not set(further) & NEWER <= set(inspect.getsource(type(subject.model.model).extra_conds).split('"')):
            pytest.skip("newer than this host")
        positive, negative = (subject.prompt(n, **further) for n in (1, 2))
        subject.sample(host.attach(subject.model, ALIGNED, trace), positive=positive, negative=negative)
        (run,) = trace.runs
        assert run.notes == []
        assert run.computed_fraction == 0.5
        assert run.expected_bytes == pytest.approx(run.peak_bytes, rel=0.05)

    def test_for_every_positive(self, host, model):
        trace = Trace()
        several = [c for label in (1, 2, 3) for c in host.dit.conditioning(torch.tensor([label, label]))]
        host.sample(host.attach(model, ALIGNED, trace), positive=several)
        assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes

    def test_in_half_precision(self, host, model):
        trace = Trace()
        half = model.clone()
        half.set_model_compute_dtype(torch.bfloat16)
        host.sample(host.attach(half, ALIGNED, trace))
        assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes

    def test_nothing_where_nothing_is_kept(self, host, model):
        for policy, steps in ((Full(), 4), (ALIGNED, 2)):
            trace = Trace()
            host.sample(host.attach(model, policy, trace), steps=steps)
            assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes == 0

    def test_what_is_measured_besides_counts_too(self, host, model):
        trace = Trace()
        host.sample(host.attach(model, Full(), trace, "errors"))
        assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes > 0

    def test_by_apply_for_usual_sizes(self, host, model):
        from priorcache.nodes.memory import memory

        text = memory(model, ALIGNED, "off", "device")
        tokens, hidden, branches, rows = (512 // 2) ** 2, 64, 3 * 2, 2
        assert f"{tokens * hidden * branches * rows * 4 / 2**20:.1f} MiB for 512 x 512" in text
        ratio = [float(n) for n in re.findall(r"([\d.]+) MiB for 512", text + memory(model, ALIGNED, "off", "8 bit"))]
        assert ratio[0] / ratio[1] == pytest.approx(4 / (1 + 2 / 32), rel=1e-3)
        assert "keeps nothing" in memory(model, Full(), "off", "device")
        assert "main memory" in memory(model, ALIGNED, "off", "cpu")
        assert "corrector" not in memory(model, GOC(ALIGNED), "off", "device")
        assert "up to five latents for its corrector" in memory(model, Forecast(), "off", "device")

    def test_by_apply_for_plans_of_many_steps(self, host, model):
        """For any number of steps, since how many there will be is not known yet."""
        from priorcache.nodes.apply import PriorCacheApply

        sigmas = tuple(torch.linspace(10, 0, 121).tolist())
        plan = Forecast(computed=tuple(range(0, 120, 2)), sigmas=sigmas, gains=((1.0, 0.5),) * 120)
        assert "Forecast, 60 computed" in PriorCacheApply.execute(model, plan, "off").args[2]

    def test_by_inspect_beside_what_was_measured(self, host, model):
        from priorcache.plots.trace import draw, summary

        trace = Trace()
        host.sample(host.attach(model, ALIGNED, trace, store="8 bit"))
        assert "the cache held 102 KiB in 8 bits at most (102 KiB expected)." in summary(trace.runs[0])
        panels = {axes.get_title(loc="left"): axes for axes in draw(trace.runs).axes}
        (line,) = panels["Memory held by the cache, in 8 bits"].get_legend().get_texts()
        assert line.get_text() == "expected: 102 KiB"
        assert trace.runs[0].as_dict()["expected_bytes"] == trace.runs[0].expected_bytes


class TestDeclared:
    @pytest.mark.parametrize("settings", [{}, {"batch": 5, "labels": range(5)}], ids=str)
    @pytest.mark.parametrize("factor", [1e-4, 0.5])  # so that a picture is small, and large, beside the cache
    def test_to_the_host_as_so_many_pictures_more(self, host, model, required, monkeypatch, settings, factor):
        """The least grows by what is told; the host asks for two rows per picture besides."""
        monkeypatch.setattr(model.model, "memory_usage_factor", factor)
        trace = Trace()
        stock, cached = required(model, **settings), required(host.attach(model, ALIGNED, trace), **settings)
        told = trace.runs[0].expected_bytes
        assert cached[1] - stock[1] == pytest.approx(told, rel=1e-3)
        assert cached[0] - stock[0] == pytest.approx(2 * told, rel=1e-3)

    def test_of_a_few_latents_no_more_than_they_take(self, host, model, required):
        """A whole picture more would, of a large model, push gigabytes of weights off the device."""
        trace = Trace()
        stock, cached = required(model, steps=12), required(host.attach(model, Forecast(), trace), steps=12)
        told = trace.runs[0].expected_bytes
        assert 0 < told < model.model.memory_required([1, 3, 16, 16]) / 10
        assert cached[1] - stock[1] == pytest.approx(told, rel=1e-3)

    @POLICIES
    @pytest.mark.parametrize("store", ["device", "cpu"])
    def test_not_where_it_could_never_be_held(self, host, model, required, monkeypatch, policy, store):
        """A reserve larger than the device would push the model's own weights off it."""
        trace = Trace()
        attached, stock = host.attach(model, policy, trace, "errors", store=store), required(model)
        monkeypatch.setattr(host.comfy.model_management, "get_total_memory", lambda *args, **kwargs: 100)
        assert required(attached) == stock
        (run,) = trace.runs
        assert run.notes[0].endswith("FORA Policy with scope 'whole network'.")
        assert " computed everything: its cache would take " in run.notes[0]
        assert (run.expected_bytes, run.peak_bytes) == (0, 0)

    def test_only_what_lies_on_the_device(self, host, model, required):
        assert required(host.attach(model, ALIGNED, store="cpu")) == required(model)
        assert required(host.attach(model, Full())) == required(model)

    def test_for_one_run_and_one_clone_only(self, host, model, required):
        stock = required(model)
        required(host.attach(model, ALIGNED))
        assert required(model) == stock


class TestStores:
    @POLICIES
    def test_main_memory_changes_no_picture(self, host, model, policy):
        expected = host.sample(host.attach(model, policy))
        assert torch.equal(host.sample(host.attach(model, policy, store="cpu")), expected)

    @POLICIES
    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
    def test_eight_bits_are_close_to_the_cached_picture(self, host, model, policy, sampler):
        stock = host.sample(model, sampler=sampler)
        cached = host.sample(host.attach(model, policy), sampler=sampler)
        eight = host.sample(host.attach(model, policy, store="8 bit"), sampler=sampler)
        assert 0 < close(eight, cached) < 0.02 * close(cached, stock)

    def test_conds_may_change_from_one_call_to_two_in_mid_run(self, host, model, monkeypatch):
        expected = host.sample(host.attach(model, ALIGNED, store="8 bit"))
        fits, calls = model.model.memory_required, []

        def sometimes(*args, **kwargs):
            calls.append(1)
            return 1e30 if len(calls) % 3 == 0 else fits(*args, **kwargs)

        trace = Trace()
        patched = host.attach(model, ALIGNED, trace, store="8 bit")
        monkeypatch.setattr(model.model, "memory_required", sometimes)
        assert close(host.sample(patched), expected) < 1e-3
        assert trace.runs[0].computed_fraction == 0.5

    def test_computing_everything_is_still_the_stock_picture(self, host, model):
        assert torch.equal(host.sample(host.attach(model, FORA(1), store="8 bit")), host.sample(model))


class TestRunningOut:
    @POLICIES
    def test_drops_the_cache_goes_on_and_says_so_once(self, host, model, policy, monkeypatch, caplog):
        class Scarce(type(CODECS["device"])):
            left = 9 if policy.level == "branch" else 1

            def encode(self, value):
                self.left -= 1
                if self.left < 0:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return super().encode(value)

        monkeypatch.setitem(CODECS, "device", Scarce())
        trace = Trace()
        patched = host.attach(model, policy, trace)
        out = host.sample(patched, steps=8)
        assert torch.isfinite(out).all()
        run = trace.runs[0]
        assert run.complete
        assert len(run.notes) == 1
        assert "memory ran out" in run.notes[0]
        assert caplog.text.count("memory ran out") == 1
        assert run.moments[-1].nbytes == 0
        assert run.evaluations == 8
        assert 0.5 < run.computed_fraction < 1

    @staticmethod
    def hungry(model, monkeypatch, call: int) -> None:
        """Memory runs out in this call of an MLP, counted from 1."""
        mlp, calls = type(model.model.diffusion_model.blocks[0].mlp), []
        forward = mlp.forward

        def counted(self, x):
            calls.append(1)
            if len(calls) == call:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(self, x)

        monkeypatch.setattr(mlp, "forward", counted)

    def test_in_the_model_itself_gives_it_what_the_cache_held_and_goes_on(self, host, model, monkeypatch):
        self.hungry(model, monkeypatch, 6)  # behind the first step's three blocks and their check, in the second block
        trace = Trace()
        out = host.sample(host.attach(model, ALIGNED, trace), steps=8)
        assert torch.isfinite(out).all()
        (run,) = trace.runs
        assert run.complete
        assert "memory ran out" in run.notes[0]
        assert (run.moments[1].nbytes > 0, run.moments[2].nbytes) == (True, 0)
        assert run.evaluations == 8

    def test_in_the_model_itself_leaves_no_trace_of_what_was_reused_in_vain(self, host, model, monkeypatch):
        class Attention(FORA):
            def decide(self, step, site):
                return Action.REUSE if site.branch == "attn" else Action.COMPUTE

        stock, trace = host.sample(model), Trace()
        self.hungry(model, monkeypatch, 6)
        assert torch.equal(host.sample(host.attach(model, Attention(2), trace)), stock)
        (run,) = trace.runs
        assert "memory ran out" in run.notes[0]
        assert {row.action for row in run.rows} == {Action.COMPUTE}

    def test_in_the_model_itself_takes_nothing_from_what_a_control_net_said(self, host, model, monkeypatch):
        """HunyuanDiT takes it out of its lists, and runs once more."""
        seen = []

        def taking(theirs, *args, control=None, **kwargs):
            seen.append({name: control[name].pop() for name in control})
            if len(seen) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return theirs(*args, **kwargs)

        def steered(apply_model, args):
            return apply_model(args["input"], args["timestep"], **args["c"] | {"control": {"output": [1]}})

        network = model.model.diffusion_model
        monkeypatch.setattr(network, "forward", partial(taking, network.forward))
        attached = host.attach(model, ALIGNED)
        attached.set_model_unet_function_wrapper(steered)
        host.sample(attached, steps=4)
        assert seen == [{"output": 1}] * 5

    def test_in_the_model_itself_is_left_to_the_host(self, host, model, monkeypatch):
        def hungry(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(type(model.model.diffusion_model.blocks[0].mlp), "forward", hungry)
        with pytest.raises(torch.OutOfMemoryError):
            host.sample(host.attach(model, ALIGNED))


class TestConds:
    """Which conds a guider samples, and so what is held for them."""

    def guider(self, host, model, kind, *cfg):
        import comfy_extras.nodes_custom_sampler as custom

        told = [host.dit.conditioning(torch.tensor([n])) for n in (1, 2, -1)]
        if kind == "dual":
            guider = custom.Guider_DualCFG(model)
            guider.set_conds(*told)
            guider.set_cfg(*cfg)
        else:

            class Scheduled(host.comfy.samplers.CFGGuider):
                """As packs have them whose cfg is one for every step."""

                def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
                    return super().predict_noise(x, timestep, model_options, seed)

            guider = (host.comfy.samplers.CFGGuider if kind == "usual" else Scheduled)(model)
            guider.set_conds(told[0], told[2])
            guider.set_cfg(*cfg)
        guider.conds = guider.original_conds
        return guider

    @pytest.mark.parametrize(
        ("kind", "cfg", "count"),
        [
            ("usual", (1.0,), 1),
            ("usual", (4.0,), 2),
            ("dual", (3.0, 2.0), 3),
            ("dual", (1.0, 1.0), 3),
            ("scheduled", ([3.0, 2.0, 1.0],), 2),
            ("scheduled", (1.0,), 2),
        ],
    )
    def test_one_is_left_out_only_where_the_host_leaves_it_out(self, host, model, kind, cfg, count):
        from priorcache.nodes.memory import parts_of

        assert len(parts_of(self.guider(host, model, kind, *cfg), (1, 3, 16, 16))) == count
