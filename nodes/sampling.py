"""What nodes have in common that sample by themselves: the settings they ask for, and the sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature

import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io

from ..cache_core.sites import Schedule
from ..errors import SettingError, finite
from ..priors.parts import parts
from ..priors.prior import GIVEN, LEAST
from .attach import schedule_of


def settings() -> list[io.Input]:
    """How somebody generates: guidance, sampler, scheduler, denoise."""
    return [
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance scale, as you generate.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="euler",
            tooltip="Sampler, as you generate.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default=comfy.samplers.KSampler.SCHEDULERS[0],  # as in KSampler, where nobody has chosen yet
            tooltip="Scheduler, as you generate.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=LEAST,
            max=1.0,
            step=0.01,
            tooltip="1 for pictures from noise, less for image to image.",
        ),
    ]


def given() -> io.Input:
    """In place of steps, scheduler and denoise: what a scheduler node made."""
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="Optional, where you sample with SamplerCustom: the noise levels of your scheduler node, such as Flux2Scheduler or LTXVScheduler. They stand in place of steps, scheduler and denoise. Where they begin below full noise, as the second half of SplitSigmas does, latent_image has to be a finished latent.",
    )


def seeded(tooltip: str, default: int = 0) -> io.Input:
    """A seed. The frontend adds a widget behind every input of this name; saved values fit only where that is declared."""
    return io.Int.Input(
        "seed",
        default=default,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,  # a new one at every run would begin all the work anew
        tooltip=tooltip,
    )


def seeds_from(seed: int, count: int) -> tuple[int, ...]:
    """So many in a row; behind the largest comes 0. Raises SettingError on none, which a linked number may ask for."""
    if count < 1:
        raise SettingError(f"runs is {count}; give 1 or more")
    return tuple((seed + i) % 2**64 for i in range(count))


def fixed(model, latent_image: dict) -> torch.Tensor | NestedTensor:
    """The latent with as many channels as the model works on."""
    fix = comfy.sample.fix_empty_latent_channels
    ratios = {name for name in signature(fix).parameters if name.startswith("downscale_ratio")}
    return fix(model, latent_image["samples"], **{name: latent_image.get(name) for name in ratios})


@dataclass
class Sampling:
    """One way to sample; the model, patched or not, and the seed are given with each call."""

    positive: list
    negative: list
    latent: torch.Tensor | NestedTensor
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float = 1.0
    mask: torch.Tensor | NestedTensor | None = None
    sigmas: tuple[float, ...] = ()  # (steps + 1,), in place of what the scheduler makes

    @classmethod
    def of(cls, model, positive: list, negative: list, latent_image: dict, *settings, sigmas=None) -> Sampling:
        """As a node is told: of a LATENT with its mask, and with as many channels as the model works on.

        sigmas: SIGMAS in place of steps, scheduler and denoise, where they are connected.
        """
        mask = latent_image.get("noise_mask")
        sampling = cls(positive, negative, fixed(model, latent_image), *settings, mask=mask)
        return sampling if sigmas is None else sampling.along(sigmas.tolist())

    def __post_init__(self):
        finite("sampling", cfg=self.cfg, denoise=self.denoise)
        if not LEAST <= self.denoise <= 1:
            raise SettingError(f"sampling: denoise is {self.denoise}; give a number from {LEAST} to 1")

    def along(self, sigmas: Sequence[float]) -> Sampling:
        """The same over these noise levels. Raises SettingError where they are not such."""
        last = len(sigmas) - 1
        wrong = [i for i, sigma in enumerate(sigmas) if not (0 < sigma < math.inf or (sigma == 0 and i == last))]
        if last < 1 or wrong:
            found = (
                f"{sigmas[wrong[0]]:g} at place {wrong[0] + 1} of {last + 1}"
                if wrong
                else f"{last + 1} noise level{'s'[: last != 0]}"
            )
            raise SettingError(
                f"sigmas holds {found}; it needs at least two, which make a step, finite and above 0, and only the last may be "
                "0: connect the scheduler node of your SamplerCustom; of SplitSigmas the half that has steps"
            )
        return replace(self, steps=len(sigmas) - 1, scheduler=GIVEN, denoise=1.0, sigmas=tuple(sigmas))

    def of_steps(self, steps: int) -> Sampling:
        """The same in another number of steps; noise levels that were given are taken at as many even places."""
        if not self.sigmas:
            return replace(self, steps=steps)
        places = np.linspace(0, self.steps, steps + 1)
        return self.along(np.interp(places, range(self.steps + 1), self.sigmas).tolist())

    @property
    def rows(self) -> int:
        """Pictures that are sampled together."""
        return self.latent.shape[0]

    @property
    def shapes(self) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """(B, C, *space) of the latent as it is sampled, and of each of its parts; several are packed into one row."""
        packed, each = comfy.utils.pack_latents([part.to("meta") for part in parts(self.latent)])  # copies none
        return tuple(packed.shape if len(each) > 1 else each[0]), [tuple(shape) for shape in each]

    def schedule(self, model) -> Schedule:
        """What is known of it beforehand."""
        sigmas = torch.tensor(self.sigmas)
        if not self.sigmas:
            sigmas = comfy.samplers.KSampler(
                model, self.steps, "cpu", self.sampler, self.scheduler, self.denoise
            ).sigmas
        sampler, (packed, each) = comfy.samplers.sampler_object(self.sampler), self.shapes
        return schedule_of(model, sampler, sigmas, self.cfg, packed[1:], each)

    def guider(self, model) -> comfy.samplers.CFGGuider:
        """As the host's own samples with these prompts."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(self.cfg)
        guider.conds = guider.original_conds  # which it copies when it samples
        return guider

    def __call__(
        self, model, seed: int, callback: Callable | None = None, pictures: int | None = None
    ) -> torch.Tensor | NestedTensor:
        """Final latents (B, C, ...), or those of the first few pictures; the host brings prompts and masks to as many."""
        noise = comfy.sample.prepare_noise(self.latent, seed)[:pictures]
        told = (self.positive, self.negative, self.latent[:pictures])
        further = {"noise_mask": self.mask, "seed": seed, "disable_pbar": True, "callback": callback}
        if self.sigmas:  # as SamplerCustom
            sampler = comfy.samplers.sampler_object(self.sampler)
            return comfy.sample.sample_custom(
                model, noise, self.cfg, sampler, torch.tensor(self.sigmas), *told, **further
            )
        return comfy.sample.sample(
            model, noise, self.steps, self.cfg, self.sampler, self.scheduler, *told, denoise=self.denoise, **further
        )
