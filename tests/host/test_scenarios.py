"""Caching in the ways that people sample with the host's own Flux, SD3 and PixArt."""

from __future__ import annotations

import gc
import importlib

import pytest
import torch
from architectures import generator, opened
from priorcache.cache_core.policies import FORA
from priorcache.cache_core.trace import Trace
from safetensors.torch import save_file

BRANCHES = FORA(2, "aligned")
NETWORK = FORA(2, "aligned", level="model")
LEVELS = pytest.mark.parametrize("policy", [BRANCHES, NETWORK], ids=["branches", "network"])
POOLED = 64


def everything(policy: FORA) -> FORA:
    """A policy of the same level that reuses nothing."""
    return FORA(1, level=policy.level)


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def left_over(model) -> list[str]:
    return [name for name, module in model.model.named_modules() if "forward" in module.__dict__]


class Subject:
    """A tiny model of the host, and one way to sample it."""

    def __init__(self, comfy, model, text: int, size: tuple[int, int]):
        self.comfy, self.model, self.width, self.size = comfy, model, text, size
        self.channels = model.model.latent_format.latent_channels

    def prompt(self, seed: int, words: int = 5, **extra) -> list:
        """Conditioning as a text encoder would make it."""
        rng = generator(seed)
        context = torch.randn(1, words, self.width, generator=rng)
        return [[context, {"pooled_output": torch.randn(1, POOLED, generator=rng)} | extra]]

    def noise(self, seed: int, batch: int, size: tuple[int, int]) -> torch.Tensor:
        return torch.randn(batch, self.channels, *size, generator=generator(seed))

    def sample(
        self, model=None, *, steps=6, cfg=2.0, sampler="euler", seed=0, batch=1, size=None, positive=None, negative=None,
        latent=None, **settings,
    ) -> torch.Tensor:  # fmt: skip
        if latent is None:
            latent = torch.zeros(batch, self.channels, *(size or self.size))
        with torch.inference_mode():
            return self.comfy.sample.sample(
                model or self.model, self.noise(seed, len(latent), latent.shape[2:]), steps, cfg, sampler, "simple",
                positive or self.prompt(1), negative or self.prompt(2), latent, disable_pbar=True, seed=seed, **settings,
            )  # fmt: skip

    def guided(self, guider, steps: int = 6) -> torch.Tensor:
        """As above, by a guider of the host's."""
        model = guider.model_patcher
        sigmas = self.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        sampler = self.comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            latent = torch.zeros(1, self.channels, *self.size)
            return guider.sample(self.noise(0, 1, self.size), latent, sampler, sigmas, disable_pbar=True, seed=0)

    def calls(self, model) -> tuple:
        """A clone, and the list of batch sizes that its network will have been called with."""
        seen = []

        def counted(apply_model, args):
            seen.append(len(args["input"]))
            return apply_model(args["input"], args["timestep"], **args["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(counted)
        return model, seen


@pytest.fixture(scope="session")
def flux_file(comfy, tmp_path_factory):
    """One head of 128, two blocks of either kind, under the names of the original checkpoints."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    network = opened(
        Flux(
            in_channels=16,
            out_channels=16,
            vec_in_dim=POOLED,
            context_in_dim=64,
            hidden_size=128,
            mlp_ratio=4.0,
            num_heads=1,
            depth=2,
            depth_single_blocks=2,
            axes_dim=[16, 56, 56],
            theta=10000,
            patch_size=2,
            qkv_bias=True,
            guidance_embed=True,
            txt_ids_dims=[],
            operations=comfy.ops.disable_weight_init,
        )
    )
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    save_file({k.replace("_norm.weight", "_norm.scale"): v for k, v in network.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="session")
def flux(host, flux_file):
    return Subject(host.comfy, loaded(flux_file), 64, (16, 16))


@pytest.fixture(scope="session")
def sd3(host, tmp_path_factory):
    """Two heads of 64 in two blocks, the least that the host's loader knows."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    context = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}}
    network = opened(
        OpenAISignatureMMDITWrapper(
            depth=2,
            input_size=None,
            in_channels=16,
            adm_in_channels=POOLED,
            pos_embed_max_size=16,
            num_patches=256,
            qk_norm="rms",
            context_embedder_config=context,
            operations=comfy.ops.disable_weight_init,
        )
    )
    path = tmp_path_factory.mktemp("sd3") / "sd3.safetensors"
    save_file(network.state_dict(), path)
    return Subject(host.comfy, loaded(str(path)), 64, (16, 16))


@pytest.fixture(scope="session")
def pixart(host):
    """Built by code, since the loader knows one size only; large patches, since latents must be larger than 32."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.PixArtSigma(
        {
            "image_model": "pixart_sigma",
            "hidden_size": 64,
            "num_heads": 4,
            "depth": 3,
            "patch_size": 8,
            "caption_channels": 64,
            "input_size": 40,
            "pe_interpolation": 1,
            "micro_condition": False,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        base = config.get_model({}, "")
        opened(base.diffusion_model)
    cpu = torch.device("cpu")
    return Subject(
        host.comfy, comfy.model_patcher.CoreModelPatcher(base, load_device=cpu, offload_device=cpu), 64, (48, 40)
    )


def loaded(path: str, **options):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(path, model_options=options)


@pytest.fixture(scope="session", params=["flux", "sd3", "pixart"])
def subject(request):
    return request.getfixturevalue(request.param)


def test_the_host_took_the_files_for_what_they_are(flux, sd3, pixart):
    kinds = [type(s.model.model).__name__ for s in (flux, sd3, pixart)]
    assert kinds == ["Flux", "SD3", "PixArt"]


class TestBypass:
    @LEVELS
    def test_is_stock_before_and_after_use(self, host, subject, policy):
        stock = subject.sample()
        assert torch.equal(subject.sample(host.attach(subject.model, everything(policy))), stock)
        trace = Trace()
        cached = subject.sample(host.attach(subject.model, policy, trace))
        assert trace.runs[0].notes == []
        assert trace.runs[0].computed_fraction == 0.5
        assert 0 < close(cached, stock) < 0.5
        assert torch.equal(subject.sample(), stock)
        assert left_over(subject.model) == []

    @LEVELS
    @pytest.mark.parametrize("error", ["interrupt", "exception"])
    def test_is_stock_after_a_run_that_was_stopped(self, host, subject, policy, error):
        kind = host.comfy.model_management.InterruptProcessingException if error == "interrupt" else ZeroDivisionError
        stock, expected = subject.sample(), subject.sample(host.attach(subject.model, policy))

        def stop(step, *_):
            if step == 3:
                raise kind

        trace = Trace()
        patched = host.attach(subject.model, policy, trace)
        with pytest.raises(kind):
            subject.sample(patched, callback=stop)
        assert left_over(subject.model) == []
        assert not trace.runs[0].complete
        assert torch.equal(subject.sample(patched), expected)
        assert torch.equal(subject.sample(), stock)


class TestRunsDoNotMix:
    @LEVELS
    @pytest.mark.parametrize(
        "changed",
        ["seed", "size", "aspect", "batch", "steps", "cfg", "sampler", "prompt", "image to image"],
    )
    def test_a_sampler_after_another_one_with_the_same_model(self, host, subject, policy, changed):
        height, width = subject.size
        settings = {
            "seed": {"seed": 5},
            "size": {"size": (height + 8, width + 8)},
            "aspect": {"size": (height + 16, width - 8)},
            "batch": {"batch": 3},
            "steps": {"steps": 7},
            "cfg": {"cfg": 1.0},
            "sampler": {"sampler": "heun"},
            "prompt": {"positive": subject.prompt(3, words=9)},
            "image to image": {"latent": subject.noise(9, 1, subject.size), "denoise": 0.6},
        }[changed]
        patched = host.attach(subject.model, policy)
        first = subject.sample(patched)
        again = subject.sample(patched, **settings)
        assert torch.equal(again, subject.sample(host.attach(subject.model, policy), **settings))
        assert torch.equal(subject.sample(patched), first)
        stock = subject.sample(**settings)
        assert torch.equal(subject.sample(host.attach(subject.model, everything(policy)), **settings), stock)
        assert 0 < close(again, stock) < 0.5

    @LEVELS
    def test_two_halves_of_one_schedule(self, host, subject, policy):
        """As two KSampler (Advanced) do: the second one goes on from the latent of the first, without new noise."""

        def halves(model) -> torch.Tensor:
            first = subject.sample(model, steps=8, start_step=0, last_step=4)
            return subject.sample(model, steps=8, start_step=4, latent=first, disable_noise=True)

        trace = Trace()
        cached = halves(host.attach(subject.model, policy, trace))
        assert [(run.total, run.computed_fraction) for run in trace.runs] == [(4, 0.5)] * 2
        assert torch.equal(halves(host.attach(subject.model, everything(policy))), halves(subject.model))
        assert 0 < close(cached, halves(subject.model)) < 0.5

    def test_thirty_prompts_of_changing_sizes_leave_no_tensor_behind(self, host, flux):
        def alive() -> int:
            gc.collect()
            return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

        models = [host.attach(flux.model, policy) for policy in (BRANCHES, NETWORK)]
        counts = []
        for i in range(30):
            size = (8 + 2 * (i % 5), 8 + 2 * (i % 3))
            flux.sample(models[i % 2], steps=4, size=size, batch=1 + i % 2, positive=flux.prompt(i, 3 + i % 4))
            counts.append(alive())
        assert max(counts[6:]) <= max(counts[:6])


class TestConds:
    @LEVELS
    def test_in_one_call_or_in_two(self, host, subject, policy, monkeypatch):
        model, calls = subject.calls(subject.model)
        one = subject.sample(host.attach(model, policy), cfg=4.0)
        assert set(calls) == {2}
        calls.clear()
        monkeypatch.setattr(subject.model.model, "memory_required", lambda *a, **k: 1e30)
        trace = Trace()
        two = subject.sample(host.attach(model, policy, trace), cfg=4.0)
        assert set(calls) == {1}
        assert close(two, one) < 1e-5
        assert trace.runs[0].computed_fraction == 0.5

    @LEVELS
    def test_of_different_lengths_go_in_two_calls(self, host, subject, policy):
        model, calls = subject.calls(subject.model)
        settings = {"positive": subject.prompt(1, words=7), "negative": subject.prompt(2, words=3)}
        stock = subject.sample(**settings)
        assert torch.equal(subject.sample(host.attach(model, everything(policy)), **settings), stock)
        assert calls == [1] * 12
        calls.clear()
        trace = Trace()
        cached = subject.sample(host.attach(model, policy, trace), **settings)
        assert calls == [1] * (12 if policy is BRANCHES else 6)
        assert trace.runs[0].computed_fraction == 0.5
        assert 0 < close(cached, stock) < 0.5

    @LEVELS
    def test_the_negative_is_not_computed_without_guidance(self, host, subject, policy):
        model, calls = subject.calls(subject.model)
        trace = Trace()
        subject.sample(host.attach(model, policy, trace), cfg=1.0)
        subject.sample(host.attach(model, policy, trace), cfg=2.0)
        assert set(calls) == {1, 2}
        assert trace.runs[1].peak_bytes == 2 * trace.runs[0].peak_bytes

    @LEVELS
    @pytest.mark.parametrize("kind", ["several", "area", "mask", "ranges", "all"])
    def test_several_positives(self, host, subject, policy, kind):
        height, width = subject.size
        mask = torch.zeros(1, height, width)
        mask[:, : height // 2] = 1
        parts = {
            "several": [{"strength": 0.5}],
            "area": [{"area": (height // 2, width, 0, 0), "strength": 1.0}],
            "mask": [{"mask": mask, "mask_strength": 0.8, "set_area_to_bounds": False}],
            "ranges": [{"start_percent": 0.0, "end_percent": 0.5}, {"start_percent": 0.5, "end_percent": 1.0}],
        }
        if subject.model.model.diffusion_model.__class__.__name__ == "PixArtMS":
            parts["area"] = [{"area": (height - 8, width, 8, 0), "strength": 1.0}]  # not below what it accepts
        wanted = [p for name in parts if kind in (name, "all") for p in parts[name]]
        positive = [*subject.prompt(1), *(c for i, more in enumerate(wanted) for c in subject.prompt(10 + i, **more))]
        stock = subject.sample(positive=positive)
        assert torch.equal(subject.sample(host.attach(subject.model, everything(policy)), positive=positive), stock)
        trace = Trace()
        cached = subject.sample(host.attach(subject.model, policy, trace), positive=positive)
        assert 0 < close(cached, stock) < 0.5
        assert trace.runs[0].notes == []

    @LEVELS
    def test_three_roles_of_perpendicular_negatives(self, host, subject, policy, monkeypatch):
        from comfy_extras.nodes_perpneg import Guider_PerpNeg

        def sample(model):
            guider = Guider_PerpNeg(model)
            guider.set_conds(subject.prompt(1), subject.prompt(2), subject.prompt(3))
            guider.set_cfg(3.0, 0.7)
            return subject.guided(guider)

        stock = sample(subject.model)
        assert torch.equal(sample(host.attach(subject.model, everything(policy))), stock)
        trace = Trace()
        cached = sample(host.attach(subject.model, policy, trace))
        assert trace.runs[0].computed_fraction == 0.5
        assert 0 < close(cached, stock) < 0.5
        monkeypatch.setattr(subject.model.model, "memory_required", lambda *a, **k: 1e30)
        assert close(sample(host.attach(subject.model, policy)), cached) < 1e-5

    @LEVELS
    @pytest.mark.parametrize("node", ["after", "instead"])
    @pytest.mark.parametrize("ours_first", [True, False])
    def test_guidance_by_skipped_layers(self, host, sd3, policy, node, ours_first):
        """A third prediction without a block, or that block left out of the negative alone."""
        slg = importlib.import_module("comfy_extras.nodes_slg")

        def guide(model):
            if node == "after":
                kind = importlib.import_module("comfy_extras.nodes_sd3").SkipLayerGuidanceSD3
                return kind.execute(model, layers="1", scale=2.0, start_percent=0.0, end_percent=0.7).args[0]
            kind = slg.SkipLayerGuidanceDiTSimple
            return kind.execute(model, start_percent=0.0, end_percent=0.7, double_layers="1").args[0]

        def both(policy):
            if ours_first:
                return guide(host.attach(sd3.model, policy, trace))
            return host.attach(guide(sd3.model), policy, trace)

        trace = Trace()
        stock = sd3.sample(guide(sd3.model))
        assert not torch.equal(stock, sd3.sample())
        assert torch.equal(sd3.sample(both(everything(policy))), stock)
        cached = sd3.sample(both(policy))
        assert 0 < close(cached, stock) < 0.5
        assert 0.5 <= trace.runs[-1].computed_fraction < 0.7


@LEVELS
def test_every_sampler_of_the_host_works(host, flux, policy):
    """Finite, and less than everything computed, or one sentence that says why not."""
    unfit = {}
    for sampler in host.comfy.samplers.KSampler.SAMPLERS:
        trace = Trace()
        out = flux.sample(host.attach(flux.model, policy, trace), sampler=sampler, size=(8, 8), steps=5)
        run = trace.runs[0]
        if not (torch.isfinite(out).all() and run.complete and (run.computed_fraction < 1 or len(run.notes) == 1)):
            unfit[sampler] = (run.computed_fraction, run.notes)
    assert unfit == {}


class TestFlux:
    @LEVELS
    @pytest.mark.parametrize("weight", ["double_blocks.1.img_attn.qkv", "single_blocks.0.linear2"])
    def test_lora_before_and_after(self, host, flux, policy, weight):
        key = f"diffusion_model.{weight}.weight"
        shape = flux.model.model.state_dict()[key].shape
        up, down = (torch.randn(n, 4, generator=generator(n)) * 0.3 for n in shape)
        adapter = importlib.import_module("comfy.weight_adapter").LoRAAdapter
        lora = {key: adapter(set(), (up, down.T.contiguous(), 4.0, None, None, None))}

        def patched(model):
            model = model.clone()
            assert model.add_patches(lora, 1.0) == [key]
            return model

        stock = flux.sample(patched(flux.model))
        assert close(flux.sample(), stock) > 1e-3
        for chosen, same in ((everything(policy), True), (policy, False)):
            before = flux.sample(host.attach(patched(flux.model), chosen))
            assert torch.equal(flux.sample(patched(host.attach(flux.model, chosen))), before)
            assert torch.equal(before, stock) == same
            assert close(before, stock) < 0.5

    @LEVELS
    @pytest.mark.parametrize("method", [None, "offset", "index", "uxo"])
    def test_reference_latents(self, host, flux, policy, method):
        """The host's index_timestep_zero works with Flux.2 only."""
        references = {"reference_latents": [flux.noise(7, 1, (8, 12)), flux.noise(8, 1, (6, 6))]}
        if method:
            references["reference_latents_method"] = method
        positive = flux.prompt(1, **references)
        cases = [
            {"positive": positive, "cfg": 1.0},
            {"positive": positive},  # a negative without references goes in a call of its own
            {"positive": positive, "negative": flux.prompt(2, **references)},
        ]
        for settings in cases:
            stock = flux.sample(**settings)
            assert torch.equal(flux.sample(host.attach(flux.model, everything(policy)), **settings), stock)
            trace = Trace()
            cached = flux.sample(host.attach(flux.model, policy, trace), **settings)
            assert (trace.runs[0].notes, trace.runs[0].computed_fraction) == ([], 0.5)
            assert 0 < close(cached, stock) < 0.5

    @LEVELS
    def test_residuals_of_a_controlnet(self, host, flux, policy):
        from comfy.controlnet import ControlBase

        class Hints(ControlBase):
            def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
                scale = t.reshape(-1, 1, 1) * 0.3
                hint = torch.randn(1, 64, 128, generator=generator(6))
                return {"input": [hint * scale, None], "output": [None, hint * scale]}

            def get_models(self):
                return []

        def sample(model):
            return flux.sample(model, positive=flux.prompt(1, control=Hints(), control_apply_to_uncond=True))

        stock = sample(flux.model)
        assert close(flux.sample(), stock) > 1e-3
        assert torch.equal(sample(host.attach(flux.model, everything(policy))), stock)
        trace = Trace()
        cached = sample(host.attach(flux.model, policy, trace))
        assert trace.runs[0].computed_fraction == 0.5
        assert 0 < close(cached, stock) < 0.5

    @LEVELS
    @pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform"])
    def test_context_windows(self, host, flux, policy, schedule):
        """Along the height of the latent, so that each part of the picture is a window."""
        windows = importlib.import_module("comfy.context_windows")
        theirs = flux.model.clone()
        theirs.model_options["context_handler"] = windows.IndexListContextHandler(
            context_schedule=windows.get_matching_context_schedule(schedule),
            fuse_method=windows.get_matching_fuse_method("pyramid"),
            context_length=8,
            context_overlap=4,
            dim=2,
        )
        stock = flux.sample(theirs)
        assert close(flux.sample(), stock) > 1e-3
        assert torch.equal(flux.sample(host.attach(theirs, everything(policy))), stock)
        trace = Trace()
        cached = flux.sample(host.attach(theirs, policy, trace))
        assert trace.runs[0].notes == []
        assert trace.runs[0].computed_fraction < 1
        assert 0 < close(cached, stock) < 0.5

    @LEVELS
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
    def test_weights_of_lower_precision(self, host, flux, flux_file, policy, dtype):
        model = loaded(flux_file, dtype=dtype)
        assert model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == dtype
        stock = flux.sample(model)
        assert not torch.equal(stock, flux.sample())
        assert torch.equal(flux.sample(host.attach(model, everything(policy))), stock)
        trace = Trace()
        cached = flux.sample(host.attach(model, policy, trace))
        assert (trace.runs[0].notes, trace.runs[0].computed_fraction) == ([], 0.5)
        assert 0 < close(cached, stock) < 0.5
        assert torch.equal(flux.sample(model), stock)


class TestMemoryToldBeforehand:
    @LEVELS
    @pytest.mark.parametrize("store", ["device", "8 bit"])
    def test_is_within_five_percent(self, host, subject, policy, store):
        for settings in ({}, {"cfg": 1.0}, {"positive": subject.prompt(1, 40), "batch": 2}):
            trace = Trace()
            subject.sample(host.attach(subject.model, policy, trace, store=store), **settings)
            assert trace.runs[0].expected_bytes == pytest.approx(trace.runs[0].peak_bytes, rel=0.05)

    def test_counts_reference_latents(self, host, flux):
        trace = Trace()
        positive = flux.prompt(1, reference_latents=[flux.noise(7, 1, (16, 12))])
        flux.sample(host.attach(flux.model, BRANCHES, trace), positive=positive)
        assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes
