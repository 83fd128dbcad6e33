"""Several tensors measured as one."""

import pytest
import torch
from priorcache.plots.metrics import relative_l2
from priorcache.priors.parts import as_one


def test_a_tensor_is_measured_as_it_is():
    tensor = torch.randn(2, 3, 4)
    assert as_one(tensor) is tensor
    assert as_one([tensor]) is tensor


def test_the_mean_square_of_several_is_the_mean_of_theirs():
    video, sound = torch.randn(3, 4, 5, 6), torch.randn(3, 2, 7)
    joined = as_one([video, sound])
    assert joined.shape == (3, 4 * 5 * 6 + 2 * 7)
    each = [part.flatten(1).square().mean(1) for part in (video, sound)]
    torch.testing.assert_close(joined.square().mean(1), sum(each) / 2)


@pytest.mark.parametrize("ruined", [0, 1])
def test_the_loss_of_a_small_part_is_seen_as_well_as_that_of_a_large_one(ruined):
    exact = [part / part.square().mean().sqrt() for part in (torch.randn(1, 10_000), torch.randn(1, 100))]
    found = [torch.zeros_like(part) if i == ruined else part for i, part in enumerate(exact)]
    assert relative_l2(as_one(found), as_one(exact)).item() == pytest.approx(0.5**0.5)
