"""Load PixArt: any width through this pack, the published one as the host's own loader has it."""

import pytest
import torch
from architectures import generator
from priorcache.cache_core.policies import FORA, Full
from priorcache.models.checkpoint import CheckpointError
from safetensors.torch import save_file

NARROW = {
    "hidden_size": 48, "depth": 2, "num_heads": 4, "patch_size": 4, "in_channels": 3, "pred_sigma": False,
    "caption_channels": 24, "model_max_length": 4, "micro_condition": False, "pe_interpolation": 1,
}  # fmt: skip


def weights(scale=0.05, dtype=torch.float32, **settings) -> dict[str, torch.Tensor]:
    from comfy.ldm.pixart.pixartms import PixArtMS

    shapes = PixArtMS(**NARROW | settings, operations=torch.nn, device="meta").state_dict()
    rng = generator(3)
    return {k: (torch.randn(v.shape, generator=rng) * scale).to(dtype) for k, v in shapes.items()}


def sample(model, size, width, channels, steps=5):
    import comfy.sample

    def prompt(seed):
        return [[torch.randn(1, 4, width, generator=generator(seed)), {}]]

    latent = torch.zeros(2, channels, *size)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent, 1), steps, 2.0, "euler", "normal", prompt(1), prompt(2), latent,
            disable_pbar=True, seed=1,
        )  # fmt: skip


def load(path, **options):
    from priorcache.models import pixart

    with torch.inference_mode():
        return pixart.load(str(path), **options)


def test_a_narrow_one_is_loaded_sampled_and_cached(host, tmp_path):
    save_file(weights(), tmp_path / "a.safetensors", metadata={"num_heads": "4", "pe_interpolation": "1"})
    model = load(tmp_path / "a.safetensors", prediction="v_prediction")
    assert model.model.model_type.name == "V_PREDICTION"
    stock = sample(model, (40, 36), 24, 3)
    assert torch.isfinite(stock).all()
    assert torch.equal(sample(host.attach(model, Full(), measure="errors"), (40, 36), 24, 3), stock)
    cached = sample(host.attach(model, FORA(2)), (40, 36), 24, 3)
    assert not torch.equal(cached, stock)
    assert torch.equal(sample(model, (40, 36), 24, 3), stock)


@pytest.mark.parametrize("alpha", [True, False], ids=["alpha", "sigma"])
def test_one_of_the_published_width_is_what_the_hosts_own_loader_makes_of_it(host, tmp_path, alpha):
    import comfy.sd

    settings = {
        "hidden_size": 1152, "num_heads": 16, "depth": 1, "patch_size": 2, "in_channels": 4, "pred_sigma": True,
        "caption_channels": 4096, "micro_condition": alpha,
    }  # fmt: skip
    save_file(weights(0.02, torch.bfloat16, **settings), tmp_path / "full.safetensors")
    ours = load(tmp_path / "full.safetensors")
    with torch.inference_mode():
        theirs = comfy.sd.load_diffusion_model(str(tmp_path / "full.safetensors"))
    assert type(ours.model.latent_format) is type(theirs.model.latent_format)
    assert torch.equal(sample(ours, (32, 40), 4096, 4, 2), sample(theirs, (32, 40), 4096, 4, 2))


@pytest.mark.parametrize(
    ("change", "metadata", "said"),
    [
        ({"t_block.1.weight": None}, {"num_heads": "4"}, r"t_block.1.weight is missing"),
        ({"x_embedder.proj.weight": torch.zeros(48, 3)}, {"num_heads": "4"}, r"not a tensor of 4 dimensions"),
        ({"x_embedder.proj.weight": torch.zeros(48, 5, 4, 4)}, {"num_heads": "4"}, r"works on 5 channels; 3 \(pixels\)"),
        ({"blocks.1.mlp.fc1.weight": torch.zeros(2, 2)}, {"num_heads": "4"}, r"blocks.1.mlp.fc1.weight has shape \(2, 2\)"),
        ({"final_layer.linear.weight": None}, {"num_heads": "4"}, r"this is no PixArt"),
        ({"final_layer.linear.weight": torch.zeros(48)}, {"num_heads": "4"}, r"final_layer.linear.weight is missing or not"),
        ({"final_layer.linear.weight": torch.zeros(())}, {"num_heads": "4"}, r"final_layer.linear.weight is missing or not"),
        ({"pos_embed": torch.zeros(3)}, {"num_heads": "4"}, r"pos_embed has shape \(3,\); 3 dimensions"),
        ({"x_embedder.proj.weight": torch.zeros(48, 3, 0, 4)}, {"num_heads": "4"}, r"patch 0.*not a usable PixArt"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(192, 48, dtype=torch.int8)}, {"num_heads": "4"}, r"holds torch.int8"),
        ({}, {}, r"set 'heads' on the loader"),
        ({}, {"num_heads": "5"}, r"5 heads do not divide"),
        ({}, {"num_heads": "4", "pe_interpolation": "0"}, r"a whole number from 1 to 999"),
        ({}, {"num_heads": "4", "prediction_type": "x0"}, r"prediction 'x0' is unknown"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named_with_what_is_wrong(host, tmp_path, change, metadata, said):
    changed = {k: v for k, v in (weights() | change).items() if v is not None}
    save_file(changed, tmp_path / "odd.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors.*{said}"):
        load(tmp_path / "odd.safetensors")


def test_a_damaged_file_is_one_clear_error(host, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load(tmp_path / "cut.safetensors")
