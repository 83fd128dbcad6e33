"""At what noise a sampler calls the model, known without waiting for the device where the sampler just takes its steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from comfy.k_diffusion.sampling import sample_euler
from comfy.patcher_extension import WrappersMP
from comfy.samplers import KSAMPLER, CFGGuider
from torch import Tensor

from ..cache_core.codecs import page_locked

BETWEEN = (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE)
"""Where other nodes may come between a schedule and the model."""

ASKED = ("__call__", "outer_predict_noise")
"""What the sampler calls of a GUIDER; one that has its own may call the model several times."""


def walks(sampler, guider, wrappers: Mapping[str, Mapping], own: Collection[str]) -> bool:
    """Whether a SAMPLER calls the model once per step, at the noise that its schedule says, and nobody comes between.

    Euler alone, which ddim is too: the host's other samplers ask the device for their noise themselves at every step.
    """
    if type(sampler) is not KSAMPLER or sampler.sampler_function is not sample_euler:
        return False
    asked_once = all(getattr(type(guider), name, None) is getattr(CFGGuider, name) for name in ASKED)
    churns = bool(sampler.extra_options.get("s_churn"))
    return asked_once and not churns and all(set(wrappers.get(kind, ())) <= set(own) for kind in BETWEEN)


class Noise:
    """The noise of every call of the model in one run.

    Reading it from an accelerator waits until everything before it is done, so that the processor cannot prepare a step
    while the device works on the one before. Of a sampler that `walks`, the schedule is taken at its word, and what the
    device says is compared as soon as it has said it.
    """

    def __init__(self, sigmas: Sequence[float], walks: bool):
        self.sigmas, self.walks = sigmas, walks
        self._expected: list[tuple[object, int]] = []  # (event, step) of what the device has yet to say
        self._said: Tensor | None = None  # where it will, by step

    def at(self, timestep: Tensor, turn: int) -> float:
        """Of the call number `turn`."""
        if not (self.walks and turn < len(self.sigmas) - 1 and _waits(timestep)):
            return float(timestep.flatten()[0])
        if self._said is None:
            self._said = page_locked((len(self.sigmas) - 1,), torch.float32)
        self._said[turn : turn + 1].copy_(timestep.flatten()[:1], non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(timestep.device))
        self._expected.append((event, turn))
        return self.sigmas[turn]

    def astray(self, wait: bool = False) -> str | None:
        """Where the device turned out to be asked for other noise than was taken for granted, in words."""
        while self._expected and (wait or self._expected[0][0].query()):
            event, turn = self._expected.pop(0)
            event.synchronize()
            said, taken = self._said[turn].item(), self.sigmas[turn]
            if not math.isclose(said, taken, rel_tol=1e-4):
                self.walks = False
                self._expected.clear()
                return f"its sampler was at noise {said:.3g} in step {turn + 1}, where its schedule has {taken:.3g}"
        return None


def _waits(timestep: Tensor) -> bool:
    """Whether reading it waits for a device; 16 bits do not tell all steps apart, so that they are read."""
    return timestep.is_cuda and timestep.dtype in (torch.float32, torch.float64)
