"""LTX-2 in the real host: two latents that are sampled as one, or a video alone, and what comes along with them."""

import inspect

import pytest
import subjects
import torch
from architectures import generator
from architectures.ltxav import LATER
from priorcache.cache_core.policies import FORA, DuCa, Full, ToCa
from priorcache.cache_core.trace import Trace

VIDEO, AUDIO = (128, 3, 2, 4), (8, 5, 16)
ALIGNED = FORA(2, "aligned")
VERSIONS = {
    "LTX-2": {},
    "LTX-2.3": LATER
    | {"connector_attention_head_dim": 64, "audio_connector_attention_head_dim": 48, "rope_type": "split"},
}


@pytest.fixture(scope="module", params=VERSIONS)
def model(comfy, request):
    return subjects.ltxav(**VERSIONS[request.param])


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=generator(seed))


def levels(*of_frames: float) -> torch.Tensor:
    return torch.tensor(of_frames, dtype=torch.float32).view(1, 1, -1, 1, 1)


GUIDE = {"keyframe_idxs": torch.rand(1, 3, 8, 2, generator=generator(5)) * 32}
WEIGHED = {"guide_attention_entries": [{"pre_filter_count": 8, "strength": 0.6, "latent_shape": [1, 2, 4]}]}
KINDS = {
    "text to video with sound": {},
    "text to video": {"sound": False},
    "image to video": {"mask": levels(0, 1, 1)},
    "guide": {"mask": levels(1, 1, 0.2), "extra": GUIDE},
    "weighed guide, no sound": {"mask": levels(1, 1, 0.2), "extra": GUIDE | WEIGHED, "sound": False},
    "reference sound": {"extra": {"ref_audio": {"tokens": noise(6, 4, 128)}}},
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def sample(model, kind: str, cfg: float = 3.0, steps: int = 6) -> torch.Tensor:
    """Both latents, in one row."""
    import comfy.sample
    from comfy.ldm.lightricks.av_model import LTXAVModel
    from comfy.nested_tensor import NestedTensor

    if kind == "reference sound" and "ref_audio" not in inspect.getsource(LTXAVModel):
        pytest.skip("newer than this host")
    sound, mask, extra = (
        KINDS[kind].get(name, default) for name, default in (("sound", True), ("mask", None), ("extra", {}))
    )
    conds = [[[noise(seed, 5, 24), extra | {"unprocessed_ltxav_embeds": True}]] for seed in (1, 2)]
    latent, given = torch.zeros(1, *VIDEO), noise(3, *VIDEO)
    if sound:
        latent, given = NestedTensor((latent, torch.zeros(1, *AUDIO))), NestedTensor((given, noise(4, *AUDIO)))
        mask = mask if mask is None else NestedTensor((mask, torch.ones(1, 1, *AUDIO[1:])))
    with torch.inference_mode():
        out = comfy.sample.sample(
            model, given, steps, cfg, "euler", "simple", *conds, latent, noise_mask=mask, disable_pbar=True, seed=0
        )  # fmt: skip
    return torch.cat([part.flatten(1) for part in out.unbind()], dim=1) if sound else out


@EVERY
@pytest.mark.parametrize("policy", [Full(), FORA(1), FORA(1, level="model")], ids=lambda p: p.describe())
def test_computing_everything_is_the_stock_video_and_its_sound(model, attach, kind, policy):
    assert torch.equal(sample(attach(model, policy, measure="errors"), kind), sample(model, kind))


@EVERY
@pytest.mark.parametrize("policy", [ALIGNED, ToCa("pixart"), DuCa("pixart")], ids=lambda p: p.describe())
def test_half_of_it_is_reused_and_the_memory_told_beforehand(model, attach, kind, policy):
    run = subjects.reused(lambda model: sample(model, kind), model, attach, policy)
    assert run.computed_fraction < 0.8  # of tokens with noise levels of their own, none are computed alone


def without_reference(args: dict) -> tuple[list[dict], dict]:
    """As the host's LTXV Reference Audio guides: the conds, and options, of one more pass."""
    kept = [{**cond, "model_conds": {**cond["model_conds"]}} for cond in args["cond"]]
    for cond in kept:
        del cond["model_conds"]["ref_audio"]
    return kept, args["model_options"]


def deaf(args: dict) -> tuple[list[dict], dict]:
    """As LTX's own guider: one more pass in which the streams do not hear each other."""
    told = {**args["model_options"]["transformer_options"], "a2v_cross_attn": False, "v2a_cross_attn": False}
    return args["cond"], {**args["model_options"], "transformer_options": told}


@pytest.mark.parametrize(
    ("kind", "passed"), [("reference sound", without_reference), ("text to video with sound", deaf)]
)
def test_one_more_pass_with_fewer_tokens_or_branches_has_a_past_of_its_own(model, attach, kind, passed):
    import comfy.samplers

    def guided(args):
        conds, options = passed(args)
        (other,) = comfy.samplers.calc_cond_batch(args["model"], [conds], args["input"], args["sigma"], options)
        return args["denoised"] + args["cond_denoised"] - other

    twice = model.clone()
    twice.set_model_sampler_post_cfg_function(guided)
    stock = sample(twice, kind)
    for policy, computed in ((FORA(1), 1), (ALIGNED, 0.5)):
        trace = Trace()
        out = sample(attach(twice, policy, trace), kind)
        (run,) = trace.runs
        assert (run.notes, run.computed_fraction) == ([], computed)
        assert torch.equal(out, stock) == (computed == 1)


def test_what_the_whole_network_keeps_is_told_too(model, attach):
    trace = Trace()
    sample(attach(model, FORA(2, "aligned", level="model"), trace), "text to video with sound")
    assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes > 0


def test_apply_cache_tells_of_a_usual_video(model, comfy):
    from priorcache.nodes.memory import memory

    assert "for 81 frames of 832 x 480" in memory(model, ALIGNED, "off", "device")
