"""The DiT against diffusers' one, and its position embedding against the formula of the paper's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from priorcache.models.checkpoint import read
from priorcache.models.dit import DiT, DiTConfig, modulate, sdpa, sincos_positions, timestep_frequencies

SMALL = DiTConfig(32, 2, 4, 2, 4, 10, learn_sigma=True)


def reference(patch: int = 2, out_channels: int = 8, size: int = 8) -> torch.nn.Module:
    """diffusers' model with random weights and one embedder for all blocks, as published DiTs have it."""
    from diffusers import DiTTransformer2DModel  # takes seconds

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=out_channels, num_layers=3,
        sample_size=size, patch_size=patch, num_embeds_ada_norm=10, norm_eps=1e-6,
    )  # fmt: skip
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    return model.eval()


def ours(state: dict[str, torch.Tensor], **kwargs) -> DiT:
    config, weights = read(state, heads=4, **kwargs)
    model = DiT(config)
    model.load_state_dict(weights)
    return model.eval()


def random_dit(config: DiTConfig) -> DiT:
    torch.manual_seed(1)
    return DiT(config).eval()


@pytest.mark.parametrize(("patch", "out_channels", "size"), [(2, 8, 8), (4, 8, 16), (2, 4, 8), (8, 8, 32)])
@torch.no_grad()
def test_it_computes_what_diffusers_computes(patch, out_channels, size):
    other = reference(patch, out_channels, size)
    x, t, y = torch.randn(3, 4, size, size), torch.tensor([0, 417, 999]), torch.tensor([0, 7, 10])
    expected = other(x, timestep=t, class_labels=y).sample[:, :4]
    got = ours(other.state_dict())(x, t, y=y)
    assert got.shape == x.shape
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01


@torch.no_grad()
def test_step_and_label_both_matter():
    model, x = ours(reference().state_dict()), torch.randn(1, 4, 8, 8)
    base, step, label = (model(x, torch.tensor([t]), y=torch.tensor([y])) for t, y in ((10, 1), (900, 1), (10, 2)))
    assert not torch.allclose(base, step, rtol=1e-2)
    assert not torch.allclose(base, label, rtol=1e-2)


@torch.no_grad()
def test_the_wrong_timestep_frequencies_are_seen():
    state = reference().state_dict()
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.tensor([3])
    assert not torch.allclose(ours(state)(x, t, y=y), ours(state, embedding="original")(x, t, y=y), rtol=1e-3)


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_one_another():
    model = random_dit(SMALL)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([100, 800]), torch.tensor([1, 2])
    apart = torch.cat([model(x[i : i + 1], t[i : i + 1], y=y[i : i + 1]) for i in range(2)])
    assert torch.allclose(model(x, t, y=y), apart, atol=1e-5)


@torch.no_grad()
def test_learned_variances_are_cut_off():
    model = random_dit(SMALL)
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tensor([0])
    before = model(x, t, y=y)
    variances = model.final_layer.linear.weight.view(2, 2, 8, 32)[:, :, 4:]
    variances.normal_()
    assert before.shape == (1, 4, 8, 8)
    assert torch.equal(model(x, t, y=y), before)
    model.final_layer.linear.weight.view(2, 2, 8, 32)[:, :, :4].normal_()
    assert not torch.allclose(model(x, t, y=y), before, rtol=1e-2)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (9, 13), (10, 6), (5, 21)])
@pytest.mark.parametrize("patch", [2, 4])
@torch.no_grad()
def test_any_size_comes_back_as_it_went_in(height, width, patch):
    model = random_dit(DiTConfig(32, 1, 4, patch, 4, 10, learn_sigma=True))
    t, y = torch.tensor([5]), torch.tensor([0])
    x = torch.randn(1, 4, height, width)
    out = model(x, t, y=y)
    assert out.shape == x.shape
    whole = F.pad(x, (0, -width % patch, 0, -height % patch), mode="circular")
    assert torch.equal(out, model(whole, t, y=y)[..., :height, :width])


def test_unpatchify_puts_every_pixel_back():
    config = DiTConfig(32, 1, 4, 2, 4, 10, learn_sigma=False)
    x = torch.arange(4 * 4 * 6.0).view(1, 4, 4, 6)
    patches = x.unflatten(3, (3, 2)).unflatten(2, (2, 2))  # B C h p w q
    tokens = patches.permute(0, 2, 4, 3, 5, 1).reshape(1, 6, 16)  # p, q, C: the order of the paper's code
    assert torch.equal(DiT(config, device="meta").unpatchify(tokens, 2, 3), x)


# --- positions ---


def published_positions(dim: int, height: int, width: int) -> np.ndarray:
    """get_2d_sincos_pos_embed of the paper's code (facebookresearch/DiT models.py), for any height and width."""

    def one_axis(positions):
        omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))
        angles = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))  # w goes first
    return np.concatenate([one_axis(columns), one_axis(rows)], axis=1)


@pytest.mark.parametrize(("dim", "height", "width"), [(16, 4, 4), (1152, 16, 16), (384, 3, 7), (8, 5, 2), (4, 1, 1)])
def test_positions_are_those_of_the_papers_code(dim, height, width):
    got = sincos_positions(dim, height, width)
    assert got.shape == (1, height * width, dim)
    assert got.dtype is torch.float32
    assert np.allclose(got[0].numpy(), published_positions(dim, height, width), atol=1e-6)


def test_the_first_half_of_the_channels_encodes_the_column():
    grid = sincos_positions(16, 3, 5)[0].view(3, 5, 16)
    assert torch.equal(grid[0, :, :8], grid[2, :, :8])
    assert torch.equal(grid[:, 0, 8:], grid[:, 4, 8:])
    assert not torch.equal(grid[:, 0, :8], grid[:, 4, :8])


def test_the_files_own_positions_are_used_at_the_training_grid_only():
    model = random_dit(DiTConfig(32, 1, 4, 2, 4, 10, learn_sigma=True, grid_size=4))
    model.pos_embed.data.normal_()
    x = torch.zeros(1, 1, 32)
    assert torch.equal(model.positions(4, 4, x), model.pos_embed)
    for height, width in ((4, 5), (5, 4), (2, 8), (8, 8)):
        assert torch.equal(model.positions(height, width, x), sincos_positions(32, height, width))


@torch.no_grad()
def test_positions_reach_the_output():
    model = random_dit(DiTConfig(32, 1, 4, 2, 4, 10, learn_sigma=True, grid_size=4))
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tensor([0])
    without = model(x, t, y=y)  # zeros, as made
    model.pos_embed.copy_(sincos_positions(32, 4, 4))
    assert not torch.allclose(model(x, t, y=y), without, rtol=1e-2)


# --- parts ---


def test_timestep_frequencies_are_cosines_then_sines_falling_to_one_ten_thousandth():
    t = torch.tensor([0.0, 3.0])
    for shift, last in ((0.0, 10000 ** -(127 / 128)), (1.0, 10000**-1.0)):
        out = timestep_frequencies(t, 256, shift)
        assert out[0].tolist() == [1.0] * 128 + [0.0] * 128
        assert out[1, [0, 128]].tolist() == pytest.approx([np.cos(3), np.sin(3)])
        assert out[1, 255].item() == pytest.approx(np.sin(3 * last))


def test_modulate_scales_around_one_and_shifts():
    x = torch.tensor([[[2.0, 3.0]]])
    assert modulate(x, torch.tensor(0.0), torch.tensor(0.0)).tolist() == x.tolist()
    assert modulate(x, torch.tensor(10.0), torch.tensor(1.0)).tolist() == [[[14.0, 16.0]]]


def test_attention_is_softmax_of_scaled_products_per_head():
    q, k, v = torch.randn(3, 2, 5, 12).unbind()
    out = sdpa(q, k, v, heads=3)
    for h in range(3):
        own = slice(4 * h, 4 * h + 4)
        weight = (q[..., own] @ k[..., own].transpose(1, 2) / 2).softmax(-1)
        assert torch.allclose(out[..., own], weight @ v[..., own], atol=1e-5)


@torch.no_grad()
def test_a_block_with_closed_gates_changes_nothing():
    block = random_dit(SMALL).blocks[0]
    block.adaLN_modulation[1].weight.zero_()
    block.adaLN_modulation[1].bias.zero_()
    x = torch.randn(2, 16, 32)
    assert torch.equal(block(x, torch.randn(2, 32)), x)


@pytest.mark.parametrize(("grid", "learn"), [(None, True), (4, False)])
def test_the_config_is_told_by_the_models_own_state_dict(grid, learn):
    config = DiTConfig(32, 2, 4, 2, 4, 10, learn_sigma=learn, grid_size=grid)
    assert read(DiT(config, device="meta").state_dict(), heads=4)[0] == config
    assert DiTConfig(**config.as_dict()) == config
