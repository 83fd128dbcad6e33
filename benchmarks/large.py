"""A flow model of small pictures that draws large ones, exactly.

Flow models sample large pictures with a shift, since noise averages out over neighbours. Of pictures that are `times` as
large and all of whose times x times neighbours are alike, nothing but the means of these neighbours tells anything, and
those have noise sigma / times in place of sigma: what a model of small pictures says of them is what is true of the large.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def denoised(apply: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, times: int) -> Tensor:
    """What apply(x, sigma), which knows small pictures (B, C, H, W), says of large ones, for sigma (B,) in [0, 1]."""
    noise = sigma.view(-1, *[1] * (x.ndim - 1)) / times
    scale = 1 - times * noise + noise  # so that picture and noise of the means add up to 1 again
    small = apply(avg_pool2d(x.float(), times) / scale, (noise / scale).flatten())
    return interpolate(small.float(), scale_factor=times, mode="nearest").to(x.dtype)


def enlarged(model, times: int, shift: float):
    """A clone of a MODEL that draws pictures `times` as large along a schedule with this shift."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = ModelSamplingSD3().patch(model, shift, 1.0)[0]

    def wrapper(apply: Callable, args: dict) -> Tensor:
        x, sigma = args["input"], args["timestep"]
        return denoised(lambda y, s: apply(y.to(x.dtype), s.to(sigma.dtype), **args["c"]), x, sigma, times)

    wrapper.__module__ = __name__.rpartition(".")[2]  # with the name of this pack it would be taken for a second cache
    model.set_model_unet_function_wrapper(wrapper)
    return model
