"""A large picture by a model of small ones: exact where the answer is known."""

import pytest
import torch
from priorcache.benchmarks.large import denoised, enlarged
from priorcache.cache_core.policies import Full
from torch.nn.functional import interpolate


def known(y, sigma):
    """E[x0 | (1 - sigma) x0 + sigma n = y] for x0 and n that are N(0, 1)."""
    sigma = sigma.view(-1, 1, 1, 1)
    return (1 - sigma) * y / ((1 - sigma) ** 2 + sigma**2)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_it_knows_all_that_the_neighbours_tell_together(times):
    rng = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.0, 0.3, 0.9, 1.0])
    level = sigma.view(-1, 1, 1, 1)
    picture = interpolate(torch.randn(4, 2, 3, 5, generator=rng), scale_factor=times, mode="nearest")
    x = (1 - level) * picture + level * torch.randn(picture.shape, generator=rng)
    means = x.unflatten(2, (3, times)).unflatten(4, (5, times)).mean((3, 5))
    share = (1 - level) / ((1 - level) ** 2 + (level / times) ** 2)  # of means whose noise is sigma / times
    expected = interpolate(share * means, scale_factor=times, mode="nearest")
    assert torch.allclose(denoised(known, x, sigma, times), expected, atol=1e-5)


def test_the_large_model_samples_pictures_of_that_size_with_its_shift(comfy):
    from priorcache.benchmarks.overhead import flux
    from priorcache.nodes.attach import attach

    small = flux().model
    large = enlarged(small, 3, 3.0)
    assert large.get_model_object("model_sampling").shift == 3.0
    assert "model_function_wrapper" not in small.model_options
    x, sigma = torch.randn(2, 16, 12, 12), torch.tensor([0.5, 0.5])
    seen = []

    def apply(y, s, **c):
        seen.append((y.shape, s))
        return y

    out = large.model_options["model_function_wrapper"](apply, {"input": x, "timestep": sigma, "c": {}})
    assert out.shape == x.shape
    (shape, level), *_ = seen
    assert shape == (2, 16, 4, 4)
    assert level.tolist() == pytest.approx([0.25, 0.25])  # means: half the picture, a sixth of noise
    assert attach(large, Full()).model is large.model  # it is taken for no other cache
