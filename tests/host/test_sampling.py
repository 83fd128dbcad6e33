"""Caching in real sampling runs of the real host."""

import copy

import pytest
import subjects
import torch
from priorcache.cache_core.policies import FORA, Full
from priorcache.cache_core.sites import MODEL, Action
from priorcache.cache_core.trace import Trace
from priorcache.errors import SettingError
from subjects import close, left_over

ALIGNED = FORA(2, "aligned")
NETWORK = FORA(2, "aligned", level="model")
LEVELS = pytest.mark.parametrize("policy", [ALIGNED, NETWORK], ids=["branches", "network"])


class TestEqualToStock:
    @pytest.mark.parametrize(
        "policy", [Full(), FORA(1), FORA(1, level="model"), FORA(2, start=1.0)], ids=lambda p: p.describe()
    )
    @pytest.mark.parametrize("measure", ["off", "errors", "truth"])
    def test_computing_everything(self, host, model, policy, measure):
        assert torch.equal(host.sample(host.attach(model, policy, measure=measure)), host.sample(model))

    @LEVELS
    def test_after_the_pack_was_used_and_removed(self, host, model, policy):
        before = host.sample(model)
        cached = host.sample(host.attach(model, policy))
        assert not torch.equal(cached, before)
        assert torch.equal(host.sample(model), before)

    @LEVELS
    def test_measuring_changes_no_picture(self, host, model, policy):
        plain = host.sample(host.attach(model, policy))
        assert torch.equal(host.sample(host.attach(model, policy, measure="errors")), plain)
        assert torch.equal(host.sample(host.attach(model, policy, measure="truth")), plain)

    def test_with_a_lora_before_and_after(self, host, model):
        key = "diffusion_model.blocks.1.attn.qkv.weight"
        delta = {key: ("diff", (torch.randn(192, 64) * 0.2,))}
        before = model.clone()
        assert before.add_patches(delta, 1.0) == [key]
        after = host.attach(model, FORA(1))
        after.add_patches(delta, 1.0)
        stock = host.sample(before)
        assert not torch.equal(stock, host.sample(model))
        assert torch.equal(host.sample(host.attach(before, FORA(1))), stock)
        assert torch.equal(host.sample(after), stock)


class TestNothingStays:
    @LEVELS
    def test_on_the_model(self, host, model, policy):
        options = copy.deepcopy(model.model_options)
        patched = host.attach(model, policy, Trace())
        host.sample(patched)
        assert left_over(model.model) == []
        assert model.model_options == options
        assert host.node.RUN not in patched.model_options.get("transformer_options", {})
        assert not any(model.wrappers.values())

    def test_no_run_outlives_its_sampling(self, host, model):
        import gc

        from priorcache.cache_core.run import CacheRun

        trace = Trace()
        patched = host.attach(model, ALIGNED, trace)
        host.sample(patched)
        gc.collect()
        assert [o for o in gc.get_objects() if isinstance(o, CacheRun)] == []

    def test_an_attached_model_that_is_attached_again_is_replaced(self, host, model, caplog):
        twice = host.attach(host.attach(model, ALIGNED), FORA(3, "aligned"))
        assert torch.equal(host.sample(twice), host.sample(host.attach(model, FORA(3, "aligned"))))
        assert "takes its place" in caplog.text


class TestConds:
    def test_that_change_from_one_call_to_two_in_mid_run(self, host, model, monkeypatch):
        expected = host.sample(host.attach(model, ALIGNED))
        fits = model.model.memory_required
        calls = []

        def sometimes(*args, **kwargs):
            calls.append(1)
            return 1e30 if len(calls) % 3 == 0 else fits(*args, **kwargs)

        monkeypatch.setattr(model.model, "memory_required", sometimes)
        trace = Trace()
        assert close(host.sample(host.attach(model, ALIGNED, trace)), expected) < 1e-5
        assert trace.runs[0].computed_fraction == 0.5

    @LEVELS
    def test_several_positives_with_timestep_ranges_and_areas(self, host, model, policy):
        def cond(label, **extra):
            return [[c, {**o, **extra}] for c, o in host.dit.conditioning(torch.tensor([label, label]))]

        positive = [
            *cond(1, start_percent=0.0, end_percent=0.5),
            *cond(2, start_percent=0.5, end_percent=1.0),
            *cond(3, area=(8, 16, 0, 0), strength=1.0, set_area_to_bounds=False),
        ]
        stock = host.sample(model, positive=positive)
        assert torch.equal(host.sample(host.attach(model, FORA(1, level=policy.level)), positive=positive), stock)
        cached = host.sample(host.attach(model, policy), positive=positive)
        assert torch.isfinite(cached).all()
        assert not torch.equal(cached, stock)

    def test_a_cond_that_ends_is_not_served_again(self, host, model):
        """Whole-network reuse across the end of a timestep range: the composition changed, so it must compute."""
        positive = [
            [c, {**o, "start_percent": s, "end_percent": e}]
            for s, e, label in ((0.0, 0.4, 1), (0.4, 1.0, 2))
            for c, o in host.dit.conditioning(torch.tensor([label, label]))
        ]
        trace = Trace()
        host.sample(host.attach(model, FORA(50, "aligned", level="model"), trace), positive=positive, cfg=1.0, steps=8)
        computed = [r.step for r in trace.runs[0].rows if r.action is Action.COMPUTE and r.site == MODEL]
        assert len(computed) == 2
        assert computed[0] == 0


class TestSamplers:
    @LEVELS
    @pytest.mark.parametrize(
        "sampler",
        [
            "heun",
            "dpm_2",
            "euler_ancestral",
            "dpmpp_2m",
            "dpmpp_sde",
            "uni_pc",
            "lcm",
            "res_multistep",
            "ddim",
            "heunpp2",
        ],
    )
    def test_work_and_are_stock_when_everything_is_computed(self, host, model, policy, sampler):
        stock = host.sample(model, sampler=sampler)
        assert torch.equal(host.sample(host.attach(model, FORA(1, level=policy.level)), sampler=sampler), stock)
        trace = Trace()
        cached = host.sample(host.attach(model, policy, trace), sampler=sampler)
        assert torch.isfinite(cached).all()
        assert 0 < trace.runs[0].computed_fraction < 1

    def test_image_to_image_counts_the_steps_that_run(self, host, model):
        trace = Trace()
        latent = torch.ones(2, 3, 16, 16) * 0.3
        host.sample(host.attach(model, ALIGNED, trace), latent=latent, denoise=0.5, steps=6)
        assert trace.runs[0].total == trace.runs[0].evaluations == 6

    def test_a_short_run_declines_with_one_sentence(self, host, model):
        trace = Trace()
        patched = host.attach(model, ALIGNED, trace)
        assert torch.equal(host.sample(patched, steps=2), host.sample(model, steps=2))
        assert trace.runs[0].notes == [
            "FORA N=2 (aligned) computed everything: a run of 2 steps leaves nothing to reuse."
        ]


class TestRefusals:
    def test_branches_of_an_architecture_without_adapter(self, host, model, monkeypatch):
        monkeypatch.setattr(host.node, "adapter_for", lambda network: None)
        with pytest.raises(host.node.CacheError, match="whole network"):
            host.attach(model, ALIGNED)
        assert torch.isfinite(host.sample(host.attach(model, NETWORK))).all()

    @pytest.mark.parametrize("make", [subjects.flux, subjects.sd3])
    def test_class_labels_for_a_network_that_reads_text(self, host, tmp_path, make):
        subject, label = make(tmp_path), host.dit.conditioning(torch.tensor([1]))
        attached, name = host.attach(subject.model, NETWORK), type(subject.model.model.diffusion_model).__name__
        told = f"DiT Class Label is connected as positive and negative, and {name} reads text.*CLIP Text Encode"
        with pytest.raises(SettingError, match=told):
            subject.sample(attached, positive=label, negative=label)

    def test_class_labels_that_are_never_looked_at_do_no_harm(self, host):
        subject = subjects.pixart()
        label, attached = host.dit.conditioning(torch.tensor([1])), host.attach(subject.model, Full())
        assert torch.equal(subject.sample(attached, negative=label, cfg=1.0), subject.sample(cfg=1.0))

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("out of memory"), RuntimeError("of another kind")], ids=repr
    )
    def test_other_errors_pass_as_they_are(self, host, model, error):
        def failing(apply_model, args):
            raise error

        attached = host.attach(model, Full())
        attached.set_model_unet_function_wrapper(failing)
        with pytest.raises(type(error), match=str(error)):
            host.sample(attached)


def test_the_cache_is_as_large_as_its_features(host, model):
    trace = Trace()
    host.sample(host.attach(model, ALIGNED, trace))
    tokens, rows, hidden, branches = 64, 2 * 2, 64, 3 * 2
    assert trace.runs[0].peak_bytes == tokens * rows * hidden * branches * 4


def test_whole_network_reuse_holds_the_derivative(host, model):
    """Between two euler steps of one held derivative x moves on a straight line in sigma."""
    seen = []
    host.sample(
        host.attach(model, FORA(3, "aligned", level="model")),
        cfg=1.0,
        steps=6,
        callback=lambda i, x0, x, n: seen.append((x, x0)),
    )
    derivatives = []
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 6)
    for (x, x0), sigma in zip(seen, sigmas, strict=False):
        derivatives.append((x - x0) / sigma)
    torch.testing.assert_close(derivatives[1], derivatives[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(derivatives[2], derivatives[0], rtol=1e-3, atol=1e-3)
    assert close(derivatives[3], derivatives[0]) > 1e-2
