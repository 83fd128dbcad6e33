"""ACE-Step in the real host: music from tags and lyrics."""

import pytest
import subjects
import torch
from architectures import ace_step, ace_step15, generator
from priorcache.cache_core.policies import FORA, DuCa, Full, ToCa

ALIGNED = FORA(2, "aligned")


@pytest.fixture(scope="module")
def model(comfy):
    published = {"in_channels": 192, "timbre_hidden_dim": 64, "audio_acoustic_hidden_dim": 64}
    return subjects.built("ACEStep15", audio_model="ace1.5", **ace_step15.sizes() | published)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=generator(seed))


KINDS = {
    "tags and lyrics": {},
    "codes": {"audio_codes": [[3, 1, 4, 1, 5]]},
    "cover": {"reference_audio_timbre_latents": [noise(7, 64, 21)]},
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def sample(model, kind: str, steps: int = 6) -> torch.Tensor:
    import comfy.sample

    conds = [[[noise(seed, 5, 24), {"conditioning_lyrics": noise(seed + 5, 9, 24)} | KINDS[kind]]] for seed in (1, 2)]
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise(3, 64, 21), steps, 3.0, "euler", "simple", *conds, torch.zeros(1, 64, 21), disable_pbar=True, seed=0
        )  # fmt: skip


@EVERY
@pytest.mark.parametrize("policy", [Full(), FORA(1), FORA(1, level="model")], ids=lambda p: p.describe())
def test_computing_everything_is_the_stock_music(model, attach, kind, policy):
    assert torch.equal(sample(attach(model, policy, measure="errors"), kind), sample(model, kind))


@EVERY
@pytest.mark.parametrize("policy", [ALIGNED, ToCa("flux"), DuCa("flux")], ids=lambda p: p.describe())
def test_half_of_it_is_reused_and_the_memory_told_beforehand(model, attach, kind, policy):
    run = subjects.reused(lambda model: sample(model, kind), model, attach, policy)
    assert run.computed_fraction < 0.7


def test_lyrics_count_as_text(model):
    import comfy.samplers
    from priorcache.nodes.memory import parts_of

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[noise(1, 5, 24), {"conditioning_lyrics": noise(2, 9, 24)}]], [[noise(3, 5, 24), {}]])
    guider.set_cfg(3.0)
    guider.conds = {role: [dict(cond) for cond in conds] for role, conds in guider.original_conds.items()}
    assert [part.text for part in parts_of(guider, (1, 64, 21))] == [14, 5]


def test_apply_cache_tells_of_usual_music(model, former):
    from priorcache.nodes.memory import memory

    for music, tokens in ((model, 30 * 25 // 2), (former, int(30 * 44100 / 512 / 8))):
        hidden, branches, rows = 64, 3 * 3, 2
        text = memory(music, ALIGNED, "off", "device")
        assert f"{tokens * hidden * branches * rows * 4 / 2**20:.1f} MiB for 30 s of music" in text


@pytest.fixture(scope="module")
def former(comfy):
    """The first ACE-Step."""
    with ace_step.short_of_lyrics():
        return subjects.built("ACEStep", audio_model="ace", **ace_step.SIZES)


def sample_former(model, steps: int = 6) -> torch.Tensor:
    import comfy.sample

    conds = [[[noise(seed, 5, 24), {"conditioning_lyrics": torch.arange(seed + 8)[None]}]] for seed in (1, 2)]
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise(3, 8, 16, 21), steps, 3.0, "euler", "simple", *conds, torch.zeros(1, 8, 16, 21), disable_pbar=True,
            seed=0,
        )  # fmt: skip


@pytest.mark.parametrize("policy", [Full(), FORA(1), FORA(1, level="model")], ids=lambda p: p.describe())
def test_computing_everything_is_the_stock_music_of_the_first(former, attach, policy):
    assert torch.equal(sample_former(attach(former, policy, measure="errors")), sample_former(former))


@pytest.mark.parametrize("policy", [ALIGNED, ToCa("flux"), DuCa("flux")], ids=lambda p: p.describe())
def test_half_of_the_first_is_reused_and_the_memory_told_beforehand(former, attach, policy):
    run = subjects.reused(sample_former, former, attach, policy)
    assert run.computed_fraction == 0.5
    assert run.expected_bytes == run.peak_bytes > 0
