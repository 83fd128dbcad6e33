"""MiniMax H3 in the real host: two latents that are sampled as one, and what comes along with them."""

import pytest
import subjects
import torch
from architectures import generator
from priorcache.cache_core.policies import FORA, DuCa, Full, ToCa
from priorcache.cache_core.trace import Trace

VIDEO, AUDIO = (24, 2, 4, 6), (32, 2, 5)
ALIGNED = FORA(2, "aligned")


@pytest.fixture(scope="module")
def model(comfy):
    pytest.importorskip("comfy.ldm.minimax.model", reason="newer than this host")
    return subjects.minimax_h3()


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=generator(seed))


KEYFRAME = {"resolved_frame_index": 0, "latent": noise(5, 24, 1, 4, 6)}
REFERENCES = [
    {"kind": "image", "latent_h": 4, "latent_w": 4, "latent": noise(6, 24, 1, 4, 4)},
    {"kind": "video_audio", "latent_t": 2, "latent_h": 4, "latent_w": 2, "ref_audio_t": 3, "latent": noise(7, 24, 2, 4, 2), "audio_latent": noise(8, 32, 2, 3)},
    {"kind": "audio", "ref_audio_t": 4, "audio_latent": noise(9, 32, 2, 4)},
]  # fmt: skip
KINDS = {
    "text to video": {},
    "image to video": {"minimax_keyframes": [KEYFRAME], "minimax_frame_count": 5},
    "references to video": {"minimax_refs": REFERENCES, "minimax_token_tags": torch.tensor([1, 0, 0, 1, 1])},
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def sample(model, kind: str, cfg: float = 3.0, steps: int = 6) -> torch.Tensor:
    """Both latents, in one row."""
    import comfy.sample
    from comfy.nested_tensor import NestedTensor

    conds = [[[noise(seed, 5, 24), KINDS[kind]]] for seed in (1, 2)]
    latent = NestedTensor((torch.zeros(1, *VIDEO), torch.zeros(1, *AUDIO)))
    given = NestedTensor((noise(3, *VIDEO), noise(4, *AUDIO)))
    with torch.inference_mode():
        out = comfy.sample.sample(
            model, given, steps, cfg, "euler", "simple", *conds, latent, disable_pbar=True, seed=0
        )  # fmt: skip
    assert [tuple(part.shape[1:]) for part in out.unbind()] == [VIDEO, AUDIO]
    return torch.cat([part.flatten(1) for part in out.unbind()], dim=1)


@EVERY
@pytest.mark.parametrize("policy", [Full(), FORA(1), FORA(1, level="model")], ids=lambda p: p.describe())
def test_computing_everything_is_the_stock_video_and_its_sound(model, attach, kind, policy):
    assert torch.equal(sample(attach(model, policy, measure="errors"), kind), sample(model, kind))


@EVERY
@pytest.mark.parametrize("policy", [ALIGNED, ToCa("flux"), DuCa("flux")], ids=lambda p: p.describe())
def test_half_of_it_is_reused_and_the_memory_told_beforehand(model, attach, kind, policy):
    run = subjects.reused(lambda model: sample(model, kind), model, attach, policy)
    assert run.computed_fraction < 0.7


def test_what_the_whole_network_keeps_is_told_too(model, attach):
    trace = Trace()
    sample(attach(model, FORA(2, "aligned", level="model"), trace), "references to video")
    assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes > 0


def test_apply_cache_tells_of_a_usual_video(model, comfy):
    from priorcache.nodes.memory import memory

    assert "for 81 frames of 832 x 480" in memory(model, ALIGNED, "off", "device")
