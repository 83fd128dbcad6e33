"""The only file that talks to the ModelPatcher: wrappers, streams, block overrides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable

import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context

from ..cache_core.adapters import adapter_for, installed, unwrapped
from ..cache_core.policies import CachePolicy
from ..cache_core.run import CacheRun, Observer
from ..cache_core.sites import MODEL, Action
from ..cache_core.trace import RunTrace, Trace

log = logging.getLogger("PriorCache")
KEY = "PriorCache"
RUN = "priorcache_run"
KINDS = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)
RIVALS = {"easycache": "EasyCache (or LazyCache)"}


class CacheError(ValueError):
    """A model that a cache cannot be attached to, or not beside another one."""


def detach(model):
    """Remove what an earlier attach put on this patcher."""
    for kind in KINDS:
        model.remove_wrappers_with_key(kind, KEY)


def attach(
    model,
    policy: CachePolicy,
    trace: Trace | None = None,
    measure: str = "off",
    observers: Iterable[Observer] = (),
):
    """A clone of `model` that samples with `policy`; the input stays as it is. Attaching again replaces, never stacks.

    Raises CacheError when the policy needs an adapter and the architecture has none.
    """
    observers = tuple(observers)
    network = unwrapped(model.model.diffusion_model)
    if adapter_for(network) is None and policy.level == "branch" and policy.history:
        raise CacheError(
            f"{policy.describe()} reuses single branches, and PriorCache has no adapter for {type(network).__name__}. "
            "Set the policy's scope to 'whole network', which works with every model."
        )
    model = model.clone()
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        log.warning(
            "PriorCache: this model already had a cache attached; the later one, %s, takes its place.",
            policy.describe(),
        )
    detach(model)

    def outer_sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        options = executor.class_obj.model_options.setdefault("transformer_options", {})
        _refuse_rivals(options)
        if RUN in options:
            raise CacheError("PriorCache is attached twice to one model: remove one of the Apply Cache nodes.")
        total = len(sigmas) - 1
        device = executor.class_obj.model_patcher.load_device
        run = CacheRun(policy, total, device, measure, observers, _new_trace(policy, total, sampler, noise))
        options[RUN] = _Clocked(run, sigmas.tolist())
        complete = False
        try:
            out = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            complete = True
            return out
        finally:  # an interrupt is a BaseException in the host
            options.pop(RUN, None)
            run.close(complete)
            for note in run.trace.notes:
                log.warning(note)
            if trace is not None and run.trace.moments:
                trace.add(run.trace)

    for kind, wrapper in zip(KINDS, (outer_sample, _predict_noise, _calc_cond_batch, _apply_model), strict=True):
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


class _Clocked:
    """A run and the sigmas of its sampler. One object, because dicts in transformer_options are copied at every call."""

    def __init__(self, run: CacheRun, sigmas: list[float]):
        self.run, self.sigmas = run, sigmas

    def progress(self, sigma: float) -> float:
        """Position of sigma in the schedule: the last sampler step at or above it, as a fraction."""
        reached = sum(s >= sigma * (1 - 1e-4) for s in self.sigmas[:-1])
        return max(reached - 1, 0) / max(len(self.sigmas) - 1, 1)


def _run_of(options: dict | None) -> _Clocked | None:
    return (options or {}).get(RUN)


def _predict_noise(executor, x, timestep, model_options={}, seed=None):  # noqa: B006 - the host's own signature
    clocked = _run_of(model_options.get("transformer_options"))
    if clocked is None:
        return executor(x, timestep, model_options, seed)
    sigma = float(timestep.flatten()[0])
    with clocked.run.evaluation(sigma, clocked.progress(sigma)):
        return executor(x, timestep, model_options, seed)


def _calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
    options = model_options.get("transformer_options", {})
    clocked = _run_of(options)
    if clocked is None or not (clocked.run.policy.level == "model" or clocked.run.observers):
        return executor(model, conds, x_in, timestep, model_options)
    sigma = timestep.flatten()[0]
    present = [i for i, cond in enumerate(conds) if cond]
    place = (tuple(x_in.shape), _window(options), str(x_in.device))
    forward = clocked.run.next_forward((i, (_active(conds[i], sigma), *place)) for i in present)
    result: list[torch.Tensor] = []

    def derivatives(x: torch.Tensor) -> torch.Tensor:
        result[:] = executor(model, conds, x, timestep, model_options)
        return torch.cat([(x - result[i]) / sigma for i in present])

    if forward.action(MODEL) is Action.COMPUTE:
        forward.computed(MODEL, derivatives(x_in))
        return result
    kept = forward.branch(MODEL, derivatives, x_in).chunk(len(present))
    out = [torch.zeros_like(x_in) for _ in conds]
    for i, derivative in zip(present, kept, strict=True):
        out[i] = x_in - sigma * derivative
    return out


def _active(cond: list[dict], sigma: torch.Tensor) -> tuple[Hashable, ...]:
    """Identities of the conds that take part at this noise level."""
    return tuple(
        str(c.get("uuid"))
        for c in cond
        if not (c.get("timestep_start") is not None and sigma > c["timestep_start"])
        and not (c.get("timestep_end") is not None and sigma < c["timestep_end"])
    )


def _apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
    def host():
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    clocked = _run_of(transformer_options)
    if clocked is None or not clocked.run.wants_branches:
        return host()
    network = unwrapped(executor.class_obj.diffusion_model)
    adapter = adapter_for(network)
    if adapter is None:
        return host()
    conds = list(zip(transformer_options["uuids"], transformer_options["cond_or_uncond"], strict=True))
    place = (x.shape[0] // len(conds), *x.shape[1:], _window(transformer_options), str(x.device))
    forward = clocked.run.next_forward((cond, (str(uuid), *place)) for uuid, cond in conds)
    with installed(adapter, network, forward):
        return host()


def _window(options: dict) -> tuple | None:
    window = options.get("context_window")
    return None if window is None else tuple(window.index_list)


def _refuse_rivals(options: dict) -> None:
    for key, name in RIVALS.items():
        if key in options:
            raise CacheError(f"{name} and PriorCache are both attached to this model: remove one of the two nodes.")


def _new_trace(policy: CachePolicy, total: int, sampler, noise: torch.Tensor) -> RunTrace:
    context = get_executing_context()
    origin = (context.prompt_id, context.node_id) if context else ("", "")
    function: Callable | None = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    about = f"{name}, {total} steps, {' x '.join(map(str, noise.shape))}"
    return RunTrace(policy.describe(), total, origin=origin, about=about)
