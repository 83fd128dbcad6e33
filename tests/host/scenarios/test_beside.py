"""Beside what else people put on a model: LoRA, ControlNet, references, windows, other weights, compilers."""

from __future__ import annotations

import importlib

import pytest
import subjects
import torch
from architectures import generator
from matrix import everything, levels
from priorcache.cache_core.compiler import LACKS
from priorcache.cache_core.policies import FORA, Forecast
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import Trace
from subjects import close, loaded

scenario = pytest.mark.scenario
HELD = "bit-equal in full, error below .5 when reused"


@scenario("LoRA before and after", "bit-equal in full, and before and after alike")
@levels()
@pytest.mark.parametrize(
    ("subject", "weight"),
    [
        ("dit", "blocks.1.attn.qkv"),
        ("flux", "double_blocks.1.img_attn.qkv"),
        ("flux", "single_blocks.0.linear2"),
    ],
    indirect=["subject"],
)
def test_lora_before_and_after(host, subject, policy, weight):
    key = f"diffusion_model.{weight}.weight"
    shape = subject.model.model.state_dict()[key].shape
    up, down = (torch.randn(n, 4, generator=generator(n)) * 0.3 for n in shape)
    adapter = importlib.import_module("comfy.weight_adapter").LoRAAdapter
    lora = {key: adapter(set(), (up, down.T.contiguous(), 4.0, None, None, None))}

    def patched(model):
        model = model.clone()
        assert model.add_patches(lora, 1.0) == [key]
        return model

    stock = subject.sample(patched(subject.model))
    assert close(subject.sample(), stock) > 1e-3
    for chosen, same in ((everything(policy), True), (policy, False)):
        before = subject.sample(host.attach(patched(subject.model), chosen))
        assert torch.equal(subject.sample(patched(host.attach(subject.model, chosen))), before)
        assert torch.equal(before, stock) == same
        assert close(before, stock) < 0.5


def referring(positive: list, references: list[torch.Tensor], method: str | None) -> list:
    """By the host's own nodes."""
    edit = importlib.import_module("comfy_extras.nodes_edit_model").ReferenceLatent
    place = importlib.import_module("comfy_extras.nodes_flux").FluxKontextMultiReferenceLatentMethod
    for latent in references:
        positive = edit.execute(positive, {"samples": latent}).args[0]
    return place.execute(positive, method).args[0] if method else positive


@scenario("reference latents", HELD)
@levels()
@pytest.mark.parametrize("method", [None, "offset", "index", "uxo/uno"])
def test_reference_latents(flux, policy, method, held):
    references = [flux.noise(7, 1, (8, 12)), flux.noise(8, 1, (6, 6))]
    positive, negative = (referring(flux.prompt(seed), references, method) for seed in (1, 2))
    cases = [
        {"positive": positive, "cfg": 1.0},
        {"positive": positive},  # a negative without references goes in a call of its own
        {"positive": positive, "negative": negative},
    ]
    for settings in cases[-1 if method else 0 :]:  # methods place tokens, which guidance does not look at
        held(flux.model, policy, lambda model, settings=settings: flux.sample(model, **settings))


@scenario("reference latents", HELD, architecture="flux")
@levels()
@pytest.mark.parametrize("method", ["index", "index_timestep_zero"])
@pytest.mark.parametrize("guided", [True, False])
def test_reference_latents_of_flux2(flux2, policy, method, guided, held):
    """Its references may be modulated as pictures without noise, which the host's other networks of this kind cannot."""
    positive = referring(flux2.prompt(1), [flux2.noise(7, 1, (4, 6))], method)
    negative = referring(flux2.prompt(2), [flux2.noise(7, 1, (4, 6))], method)
    if not guided:
        held(flux2.model, policy, lambda model: flux2.sample(model, positive=positive, cfg=1.0))
        return
    plain = flux2.sample(positive=referring(flux2.prompt(1), [flux2.noise(7, 1, (4, 6))], "offset"), negative=negative)
    settings = {"positive": positive, "negative": negative}
    assert close(held(flux2.model, policy, lambda model: flux2.sample(model, **settings)).stock, plain) > 1e-4


@scenario("ControlNet", HELD)
@levels()
def test_residuals_of_a_controlnet(flux, policy, held):
    from comfy.controlnet import ControlBase

    class Hints(ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            scale = t.reshape(-1, 1, 1) * 0.3
            hint = torch.randn(1, 36, 128, generator=generator(6))
            return {"input": [hint * scale, None], "output": [None, hint * scale]}

        def get_models(self):
            return []

    def sample(model):
        return flux.sample(model, positive=flux.prompt(1, control=Hints(), control_apply_to_uncond=True))

    stock = held(flux.model, policy, sample).stock
    assert close(flux.sample(), stock) > 1e-3


SPARSE = pytest.mark.parametrize(
    "policy",
    [FORA(6, "aligned"), FORA(6, "aligned", level="stack"), Forecast(computed=(0, 5, 10))],
    ids=lambda p: p.describe(),
)


@SPARSE
def test_where_a_controlnet_ends_nothing_is_carried_over(flux, policy):
    """What was computed with its hints says nothing of a pass without them."""
    from comfy.controlnet import ControlBase
    from priorcache.nodes.attach import attach

    class Hints(ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            if t[0] > self.timestep_range[0] or t[0] < self.timestep_range[1]:
                return None
            return {"input": [torch.ones(1, 36, 128), None], "output": [None, torch.ones(1, 36, 128)]}

        def get_models(self):
            return []

    def computed(last: float) -> list[int]:
        hints, trace = Hints(), Trace()
        hints.set_cond_hint(torch.zeros(1, 3, 8, 8), 1.0, (0.0, last))
        told = {"control": hints, "control_apply_to_uncond": True}
        flux.sample(attach(flux.model, policy, trace), steps=12, positive=flux.prompt(1, **told))
        (run,) = trace.runs
        assert run.peak_bytes < 1.05 * run.expected_bytes  # not twice as much where they end
        return [i for i in range(12) if all(r.action is Action.COMPUTE for r in run.rows if r.step == i)]

    always, ended = computed(1.0), computed(0.26)
    assert len(ended) == len(always) + 1
    (switch,) = set(ended) - set(always)
    assert 2 <= switch <= 4


@SPARSE
def test_where_the_range_of_a_patch_ends_nothing_is_carried_over(flux, policy):
    """As the host's nodes for LLLite and Uni3C have one."""
    from priorcache.nodes.attach import attach

    class Patch:
        def __init__(self, first: float, last: float):
            self.sigma_start, self.sigma_end = first, last

        def __call__(self, args: dict) -> dict:
            return args

    def computed(last: float) -> list[int]:
        model, trace = flux.model.clone(), Trace()
        sampling = model.get_model_object("model_sampling")
        patch = Patch(*map(sampling.percent_to_sigma, (0.0, last)))
        model.set_model_patch(patch, "post_input")
        flux.sample(attach(model, policy, trace), steps=12)
        rows = trace.runs[0].rows
        return [i for i in range(12) if all(r.action is Action.COMPUTE for r in rows if r.step == i)]

    always, ended = computed(1.0), computed(0.26)
    assert len(ended) == len(always) + 1
    (switch,) = set(ended) - set(always)
    assert 2 <= switch <= 4


@SPARSE
def test_where_a_hooks_keyframe_begins_nothing_is_carried_over(flux, policy):
    """A LoRA of one strength says nothing of it at another."""
    import comfy.hooks
    from priorcache.nodes.attach import attach

    name = "double_blocks.0.img_attn.qkv"
    up, down = (torch.randn(*shape, generator=generator(9)) * 0.3 for shape in ((384, 2), (2, 128)))
    lora = {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}

    def computed(last: float, model=None) -> list[int]:
        hooks, frames, trace = comfy.hooks.create_hook_lora(lora, 1.0, 0.0), comfy.hooks.HookKeyframeGroup(), Trace()
        for strength, start in ((1.0, 0.0), (last, 0.26)):
            frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start, guarantee_steps=1))
        hooks.set_keyframes_on_hooks(frames)
        told = comfy.hooks.set_hooks_for_conditioning(flux.prompt(1), hooks)
        attached = attach(flux.model, policy, trace)
        pictures.append(flux.sample(attached, steps=12, positive=told, cfg=1.0))
        rows = trace.runs[0].rows
        return [i for i in range(12) if all(r.action is Action.COMPUTE for r in rows if r.step == i)]

    pictures: list[torch.Tensor] = []
    same, ended = computed(1.0), computed(0.0)
    assert close(*pictures) > 1e-3  # the hook does something
    assert len(ended) == len(same) + 1
    (switch,) = set(ended) - set(same)
    assert 2 <= switch <= 4


@scenario("context windows", HELD)
@levels()
@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform"])
def test_context_windows(flux, policy, schedule, held):
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
    stock = held(theirs, policy, flux.sample, computed=None).stock
    assert close(flux.sample(), stock) > 1e-3


@levels()
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(getattr(torch, name), marks=scenario(f"{told} weights", HELD), id=told)
        for name, told in {"float16": "float16", "bfloat16": "bfloat16", "float8_e4m3fn": "float8"}.items()
    ],
)
def test_weights_of_lower_precision(flux, policy, dtype, held):
    model = loaded(flux.path, dtype=dtype)
    assert model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight.dtype == dtype
    stock = held(model, policy, flux.sample).stock
    assert not torch.equal(stock, flux.sample())
    assert torch.equal(flux.sample(model), stock)


@scenario("low-VRAM mode", "bit-equal to the same run with all weights loaded")
@levels()
@pytest.mark.parametrize("subject", ["dit", "flux"], indirect=True)
def test_weights_that_the_host_keeps_elsewhere(host, subject, policy):
    """They are cast layer by layer; our blocks must still call the modules."""
    stock, cached = subject.sample(), subject.sample(host.attach(subject.model, policy))
    low = host.attach(subject.model, policy)
    with torch.inference_mode():
        low.patch_model(device_to=low.load_device, lowvram_model_memory=20_000)
        assert any(getattr(m, "comfy_cast_weights", False) for m in subject.model.model.modules())
    assert torch.equal(subject.sample(low), cached)
    assert torch.equal(subject.sample(), stock)


@pytest.fixture(scope="module")
def shallow(host, tmp_path_factory):
    """Compiling takes long: one block of either kind."""
    return {"dit": subjects.dit(depth=2), "flux": subjects.flux(tmp_path_factory.mktemp("shallow"), depth=1)}


@pytest.mark.skipif(bool(LACKS), reason=LACKS)
@scenario("torch.compile before and after", "error below 1e-5 to the same run without it; reuses counted")
@levels()
@pytest.mark.parametrize("architecture", ["dit", "flux"])
@pytest.mark.usefixtures("steady_memory")
def test_the_hosts_compile_node(host, shallow, architecture, policy):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    def compiled(model):
        return TorchCompileModel.execute(model, "eager").args[0]

    subject = shallow[architecture]
    expected = subject.sample(host.attach(subject.model, policy))
    torch._dynamo.reset()
    for wrap in (
        lambda trace: host.attach(compiled(subject.model), policy, trace),
        lambda trace: compiled(host.attach(subject.model, policy, trace)),
    ):
        both = wrap(trace := Trace())
        assert close(subject.sample(both), expected) < 1e-5
        done = {site: [r.action for r in trace.runs[0].rows if r.site == site] for site in trace.runs[0].sites}
        assert set(map(tuple, done.values())) >= {(Action.COMPUTE, Action.REUSE) * 2}
        assert (trace.runs[0].notes, trace.runs[0].computed_fraction) == ([], 0.5)
    torch._dynamo.reset()
