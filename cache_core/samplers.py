"""What is known of the host's samplers, by the names that a Schedule has for them."""

from __future__ import annotations

import re

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

RUNGE_KUTTA = re.compile(r"rk (?!(euler|ddim)( sde)?$).+|(res|deis)_\d[ms](_ode)?")
"""Those of RES4LYF, which call it several times per step, be it only until they have past outputs to go on from."""

LYING = ("detail_daemon_sampler", "lying_sigma_sampler")
"""Those of ComfyUI-Detail-Daemon around another one, which tell the model of less noise than there is, once per step."""

STATEFUL = ("ar_video",)
"""Those whose network keeps keys and values from call to call, and winds them back for the next one."""


def among(schedule: Schedule, *names: str) -> bool:
    """Whether a run's sampler, or one that it works around, is one of these."""
    return not set(names).isdisjoint(schedule.samplers)


def several(schedule: Schedule) -> bool:
    """Whether a run's sampler calls the model several times per step, as far as its name tells, and adds no noise."""
    return among(schedule, *SEVERAL) or any(map(RUNGE_KUTTA.fullmatch, schedule.samplers))


def once(schedule: Schedule) -> bool:
    """Whether a run's sampler calls the model once per step, as far as its name tells."""
    return not (several(schedule) or among(schedule, *SEVERAL_NOISY))


def noisy(schedule: Schedule) -> bool:
    """Whether a run's sampler adds noise on the way, as far as its name tells."""
    return any(part in schedule.sampler for part in NOISY)


def multistep(schedule: Schedule) -> bool:
    """Whether a run's sampler extrapolates past outputs itself, as far as its name tells."""
    return any(part in schedule.sampler for part in MULTISTEP)


def in_turn(schedule: Schedule) -> bool:
    """Whether a run's calls of the model are its steps, one after the other, whatever noise they tell of."""
    return among(schedule, *LYING) and once(schedule)


def told(schedule: Schedule) -> str:
    """A run's sampler as people know it."""
    return schedule.sampler.replace("_function", "")
