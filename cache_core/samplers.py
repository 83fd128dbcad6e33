"""What is known of the host's samplers, by the names that a Schedule has for them."""

from __future__ import annotations

from .sites import Schedule

SEVERAL = ("heun", "heunpp2", "dpm_2", "exp_heun_2_x0", "dpm_fast_function", "dpm_adaptive_function")
"""Those that call the model several times per step and add no noise."""

SEVERAL_NOISY = (
    "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "exp_heun_2_x0_sde",
    "seeds_2", "seeds_3", "sa_solver_pece",
)  # fmt: skip
"""Those that do both."""

NOISY = ("ancestral", "sde", "seeds", "lcm", "ddpm", "sa_solver")
"""Parts of the names of those that add noise on the way."""

MULTISTEP = ("2m", "3m", "lms", "ipndm", "deis", "multistep", "unipc", "uni_pc", "gradient_estimation")
"""Parts of the names of those that extrapolate past outputs themselves, and with them the error of a forecast."""

STATEFUL = ("ar_video",)
"""Those whose network keeps keys and values from call to call, and winds them back for the next one."""


def among(schedule: Schedule, *names: str) -> bool:
    """Whether a run's sampler, or one that it works around, is one of these."""
    return not set(names).isdisjoint(schedule.samplers)


def told(schedule: Schedule) -> str:
    """A run's sampler as people know it."""
    return schedule.sampler.replace("_function", "")
