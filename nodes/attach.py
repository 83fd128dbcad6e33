"""The only file that talks to the ModelPatcher: wrappers, streams, block overrides."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Iterator

import torch
from comfy.model_sampling import CONST, V_PREDICTION
from comfy.patcher_extension import WrappersMP
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from torch import nn

from ..cache_core.adapters import Adapter, adapter_for, installed, misfit, sites_of, unwrapped
from ..cache_core.codecs import CODECS
from ..cache_core.compiler import untraced
from ..cache_core.policies import CachePolicy
from ..cache_core.run import CacheRun, Observer, out_of_memory
from ..cache_core.samplers import in_turn
from ..cache_core.sites import FLOW, MODEL, OF, Action, Schedule
from ..cache_core.trace import RunTrace, Trace, human_bytes
from ..priors.record import recorded
from .dit import refuse_labels
from .graph import recipe
from .memory import beyond, bytes_aside, expected_bytes, frames_of, guidance_of, informed, parts_of
from .noise import Noise, walks
from .rivals import CacheError, refuse_rivals

log = logging.getLogger("PriorCache")
KEY = "PriorCache"
RUN = "priorcache_run"
KINDS = (
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.PREPARE_SAMPLING,
    WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
    WrappersMP.APPLY_MODEL,
)
COMPILE = "torch.compile"  # comfy_api.torch_helpers names its wrapper so
MOVING = "SpotDiffusion"
"""The class of the one kind of tiles in ComfyUI-TiledDiffusion that never lie where they were before."""


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
    store: str = "device",
):
    """A clone of `model` that samples with `policy`; the input stays as it is. Attaching again replaces, never stacks.

    store: how features are kept, one of CODECS. Raises CacheError when the policy needs an adapter and the
    architecture has none, and when another cache is on the model. An adapter that no longer fits its host computes
    everything and says so.
    """
    observers = tuple(observers)
    refuse_rivals(model.model_options, model.wrappers, KEY)
    network = unwrapped(model.model.diffusion_model)
    kind, there = "diffusion_model.__class__", type(model.model.diffusion_model)
    known = kind not in model.object_patches and model.get_model_object(kind) is there
    reason = misfit(network) if known else None  # else it is not yet, or still, what another node makes of it
    if known and adapter_for(network) is None and not reason and policy.level != "model" and policy.history:
        raise CacheError(
            f"{policy.describe()} reuses single branches, and PriorCache has no adapter for {type(network).__name__}. "
            "Use Forecast Policy or PriorCache (auto), which serve every model, or FORA Policy with scope 'whole network'."
        )
    model = model.clone()
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        log.warning(
            "PriorCache: this model already had a cache attached; the later one, %s, takes its place.",
            policy.describe(),
        )
    detach(model)

    def outer_sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args, **kwargs):
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})
        wrappers = options.get("wrappers", {})
        refuse_rivals(guider.model_options, wrappers, KEY)
        if RUN in options:
            raise CacheError("PriorCache is attached twice to one model: remove one of the Apply Cache nodes.")
        if len(sigmas) < 2:  # nothing is sampled, as behind a split at the first step
            if trace is not None:
                trace.renew(*_origin())
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)
        shapes = kwargs.get("latent_shapes") or [noise.shape]
        parts = parts_of(guider, noise.shape, shapes)
        shape = () if noise.is_nested else noise.shape[1:]
        schedule = schedule_of(guider.model_patcher, sampler, sigmas, guidance_of(guider), shape, shapes)
        schedule = informed(schedule, guider.model_patcher, policy, parts, CODECS[store])
        run = CacheRun(
            policy,
            schedule,
            guider.model_patcher.load_device,
            measure,
            observers,
            _new_trace(policy, schedule, noise, guider.model_patcher),
            CODECS[store],
            compiled=COMPILE in wrappers.get(WrappersMP.APPLY_MODEL, {}),
        )
        run.trace.record = recorded(run.policy)
        if reason and policy.level != "model" and policy.history:
            run.decline(reason)
        if type(guider.model_options.get("model_function_wrapper")).__name__ == MOVING:
            run.decline(
                f"the tiles of {MOVING} move at every step; MultiDiffusion and Mixture of Diffusers leave them in place"
            )
        expected = expected_bytes(guider.model_patcher, run, parts)
        if large := beyond(guider.model_patcher, run, expected):
            run.forgo(large)
            expected = 0
        run.trace.expected_bytes = expected
        if expected and policy.history:
            log.info("PriorCache: %s will hold about %s (store = %s).", policy.describe(), human_bytes(expected), store)
        on_device = expected if run.store.codec.on_device else bytes_aside(guider.model_patcher, run, parts)
        walking = walks(sampler, guider, wrappers, (KEY,))
        levels = Noise(sigmas.float().tolist(), walking)  # in 32 bits, as the model is told of it
        options[RUN] = _Sampling(run, levels, noise, on_device, in_turn(schedule))
        if run.corrector and callback:
            callback = _uncorrected(callback, run, denoise_mask)
        complete = False
        try:
            out = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)
            if (astray := levels.astray(wait=True)) and run.declined is None:
                run.trace.notes.append(f"{run.policy.describe()} decided by the wrong noise: {astray}.")
            complete = True
            return out
        except (RuntimeError, KeyError) as error:
            if not out_of_memory(error):
                refuse_labels(guider.conds, unwrapped(guider.model_patcher.model.diffusion_model), error)
            raise
        finally:  # an interrupt is a BaseException in the host
            options.pop(RUN, None)
            run.close(complete)
            for note in run.trace.notes:
                (log.info if note == run.remark else log.warning)(note)
            if trace is not None and (run.trace.moments or run.trace.notes):
                trace.add(run.trace)

    wrappers = (outer_sample, _prepare_sampling, _predict_noise, _calc_cond_batch, _apply_model)
    for kind, wrapper in zip(KINDS, wrappers, strict=True):
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def _uncorrected(callback: Callable, run: CacheRun, mask: torch.Tensor | None) -> Callable:
    """The same, shown the picture as the model tells of it, without what a corrector adds for the sampler."""

    def shown(step, denoised, x, total):
        excess = run.excess
        if isinstance(excess, torch.Tensor):
            denoised = denoised - (excess if mask is None else excess * mask).to(denoised)
        return callback(step, denoised, x, total)

    return shown


class _Sampling:
    """A run, the noise of its sampler, its pictures, the bytes that the device must have free for it, its networks' adapters.

    One object, because dicts in transformer_options are copied at every call.
    """

    def __init__(self, run: CacheRun, levels: Noise, noise: torch.Tensor, reserve: int, in_turn: bool):
        self.run, self.levels, self.rows, self.reserve, self.guider = run, levels, len(noise), reserve, None
        self._in_turn = in_turn
        self._size = 0 if noise.is_nested else noise.numel()
        self._adapters: dict[nn.Module, Adapter | None] = {}

    def begins(self, x: torch.Tensor) -> None:
        """An evaluation of x: one of a part of the picture is not the same function from step to step."""
        if self._size and x.numel() < self._size:
            self.run.decline(
                "the sampler calls the model for parts of the picture (tiles), which cannot be told apart here"
            )

    def begun(self) -> bool:
        """Whether there was an evaluation; a guider of another node may go past what tells where one begins."""
        if not self.run.evaluations:
            self.run.decline(
                "the guider of another node calls the model in a way of its own, so that steps cannot be told apart"
            )
        return self.run.evaluations > 0

    def adapter(self, network: nn.Module) -> Adapter | None:
        """As it stands when the network first runs; one that another node took apart has none and is computed."""
        if network not in self._adapters:
            found = self._adapters[network] = adapter_for(network)
            if found is None and self.run.policy.history:
                self.run.decline("another node replaced the blocks of this model")
        return self._adapters[network]

    def progress(self, sigma: float) -> float:
        """Position of sigma in the schedule: the last sampler step at or above it, as a fraction.

        Of steps at almost the same noise, or of a sampler that tells of other noise, the one whose turn it is.
        """
        steps, turn = self.levels.sigmas[:-1], self.run.evaluations
        if turn < len(steps) and (self._in_turn or math.isclose(steps[turn], sigma, rel_tol=1e-4)):
            return turn / len(steps)
        return max(sum(s >= sigma * (1 - 1e-4) for s in steps) - 1, 0) / max(len(steps), 1)


def _run_of(options: dict | None) -> _Sampling | None:
    return (options or {}).get(RUN)


def _prepare_sampling(executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
    """The host loads a model by what it expects to need for so many pictures; the cache counts as more, in fractions."""
    sampling = _run_of((model_options or {}).get("transformer_options"))
    if sampling is not None and sampling.reserve:
        one = model.model.memory_required([1, *noise_shape[1:]])
        more = sampling.reserve / one if one > 0 else 0  # a node may set the host's factor to 0
        noise_shape = [noise_shape[0] + more, *noise_shape[1:]]
    return executor(model, noise_shape, conds, *args, model_options=model_options, **kwargs)


def _predict_noise(executor, x, timestep, model_options={}, seed=None):  # noqa: B006 - the host's own signature
    sampling = _run_of(model_options.get("transformer_options"))
    if sampling is None:
        return executor(x, timestep, model_options, seed)
    run, levels, sampling.guider = sampling.run, sampling.levels, executor.class_obj
    astray = levels.astray()  # in an evaluation before
    sigma = levels.at(timestep, run.evaluations)
    with run.evaluation(sigma, sampling.progress(sigma)):
        if astray:
            run.decline(astray)
        sampling.begins(x)
        return run.guided(x, executor(x, timestep, model_options, seed))


def _calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
    options = model_options.get("transformer_options", {})
    sampling = _run_of(options)
    if sampling is None or not (sampling.run.policy.level == "model" or sampling.run.observers) or not sampling.begun():
        return executor(model, conds, x_in, timestep, model_options)
    sigma, known = timestep.flatten()[0], sampling.run.step.sigma
    if sampling.guider is not None:
        sampling.run.scale = guidance_of(sampling.guider)  # here, as nodes between may have another one for some steps
    present = [i for i, cond in enumerate(conds) if cond]
    place = (tuple(x_in.shape), *_manner(options, known), str(x_in.device))
    forward = sampling.run.next_forward((i, (_active(conds[i], known), *place)) for i in present)
    result: list[torch.Tensor] = []

    def derivatives(x: torch.Tensor) -> torch.Tensor:
        result[:] = executor(model, conds, x, timestep, model_options)
        return torch.cat([(x - result[i]) / sigma for i in present])

    if forward.action(MODEL) is Action.COMPUTE:
        forward.computed(MODEL, derivatives(x_in))
        return result
    kept = forward.branch(MODEL, derivatives, x_in).chunk(len(present))
    found = {i: x_in - sigma * derivative for i, derivative in zip(present, kept, strict=True)}
    return [found[i] if i in found else torch.zeros_like(x_in) for i in range(len(conds))]


def _active(cond: list[dict], sigma: float) -> tuple[Hashable, ...]:
    """The conds that take part at this noise level, each with the part that its ControlNets and hooks take."""
    return tuple(
        (str(c.get("uuid")), *_controls(c.get("control"), sigma), *_hooked(c.get("hooks"), sigma))
        for c in cond
        if not (c.get("timestep_start") is not None and sigma > _rounded(c["timestep_start"]))
        and not (c.get("timestep_end") is not None and sigma < _rounded(c["timestep_end"]))
    )


def _rounded(limit) -> float:
    """A limit as the host compares noise with it, in 32 bits."""
    return torch.tensor(float(limit), dtype=torch.float32).item()


def _steered(control: dict | None) -> tuple[Hashable, ...]:
    """How much of a pass its ControlNets reach into; none of it outside of their ranges."""
    return tuple((name, sum(part is not None for part in parts)) for name, parts in (control or {}).items())


def _controls(control, sigma: float) -> Iterator[bool]:
    """Of a chain of ControlNets, which have a say at this noise level."""
    while control is not None:
        first, last = getattr(control, "timestep_range", None) or (math.inf, -math.inf)
        yield _rounded(last) <= sigma <= _rounded(first)
        control = getattr(control, "previous_controlnet", None)


def _hooked(hooks, sigma: float) -> Iterator[float]:
    """How strong each hook is that has keyframes."""
    for hook in hooks.hooks if hooks is not None else ():
        frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
        reached = [frame.strength for frame in frames if _rounded(frame.start_t) >= sigma]
        yield from reached[-1:]


@untraced  # torch.compile may have been given what calls this
def _apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
    def host():
        """May be called twice; HunyuanDiT takes what a ControlNet says out of its lists."""
        said = control and {n: list(p) if isinstance(p, list) else p for n, p in control.items()}
        return executor(x, t, c_concat, c_crossattn, said, transformer_options, **kwargs)

    sampling = _run_of(transformer_options)
    if sampling is None or not sampling.run.wants_branches or not sampling.begun():
        return host()
    network = unwrapped(executor.class_obj.diffusion_model)
    sampling.run.compiled |= network is not executor.class_obj.diffusion_model
    adapter = sampling.adapter(network)
    if adapter is None:
        return host()
    uuids, indices = transformer_options["uuids"], transformer_options["cond_or_uncond"]
    if len(uuids) != len(indices) or x.shape[0] % len(uuids):
        sampling.run.decline("another node rearranges the rows of this model's batches")
        return host()
    conds = list(zip(uuids, indices, strict=True))
    hooks = getattr(getattr(executor.class_obj, "current_patcher", None), "current_hooks", None)
    strengths = tuple(hook.strength for hook in hooks.hooks) if hooks is not None else ()
    manner = (*_manner(transformer_options, sampling.run.step.sigma), _steered(control), strengths)
    rows = x.shape[0] // len(conds)
    if rows != sampling.rows:  # tiles in one batch, which may stand in any order: that of other conds says nothing
        manner = (*manner, tuple(conds))
    place = (rows, *x.shape[1:], *manner, str(x.device))
    forward = sampling.run.next_forward(((cond, (str(uuid), *place)) for uuid, cond in conds), rows=x.shape[0])
    run, before = sampling.run, len(sampling.run.trace.rows)
    try:
        with installed(adapter, network, forward):
            out = host()
        if not forward.lost:
            return out
    except (RuntimeError, MemoryError) as error:  # in the network's own work: it may do with what the cache gives back
        if not (run.store.codec.on_device and run.store.nbytes and run.survives(error)):
            raise
    with run.lock:
        del run.trace.rows[before:]  # what was reused in it is computed now
    return host()


def _manner(options: dict, sigma: float) -> tuple[Hashable, ...]:
    """What makes a pass another function of the same cond: its window, what it has in place of blocks, and in range."""
    window, replaced = options.get("context_window"), options.get("patches_replace") or {}
    return (
        None if window is None else tuple(window.index_list),
        frozenset((kind, block) for kind, blocks in replaced.items() for block in blocks),
        tuple(_reaching(options, sigma)),
    )


def _reaching(options: dict, sigma: float) -> Iterator[bool]:
    """Of the patches that have a range, such as those of LLLite and Uni3C, which have a say at this noise level."""
    for patch in (patch for patches in (options.get("patches") or {}).values() for patch in patches):
        first, last = getattr(patch, "sigma_start", None), getattr(patch, "sigma_end", None)
        if isinstance(first, (int, float)) and isinstance(last, (int, float)):
            yield last <= sigma <= first


def named(sampler) -> str:
    """A SAMPLER as a Schedule names it: by its function, so that "ddim" is "euler".

    One that a node wraps in its own, as Detail Daemon does, has both names: "detail_daemon_sampler of euler".
    """
    function: Callable | None = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    options = getattr(sampler, "extra_options", None) or {}
    if kind := options.get("rk_type"):  # RES4LYF has one function for all of its own
        name = f"rk {kind}{' sde' if options.get('eta') else ''}"
    return OF.join([name, *(named(inner) for inner in options.values() if hasattr(inner, "sampler_function"))])


def schedule_of(
    model, sampler, sigmas: torch.Tensor, cfg: float, shape: Iterable[int] = (), parts: Iterable[tuple[int, ...]] = ()
) -> Schedule:
    """What is known of sampling a MODEL by a SAMPLER along these sigmas (steps + 1,).

    shape: (C, *space) of the latent as it is sampled. parts: (B, C, *space) of it, or of each of its parts.
    """
    return Schedule(
        total=len(sigmas) - 1,
        sigmas=tuple(sigmas.tolist()),
        sampler=named(sampler),
        prediction=prediction_of(model),
        cfg=cfg,
        shape=tuple(shape),
        sites=sites_of(model.model.diffusion_model),
        frames=frames_of(part[1:] for part in parts),
    )


def prediction_of(model) -> str:
    """The host's name of what a MODEL predicts, as it is sampled: nodes such as ModelSamplingSD3 make another of it."""
    name, sampling = model.model.model_type.name, model.get_model_object("model_sampling")
    if isinstance(sampling, CONST) == (name in FLOW):
        return name
    return "FLOW" if isinstance(sampling, CONST) else "V_PREDICTION" if isinstance(sampling, V_PREDICTION) else "EPS"


def _new_trace(policy: CachePolicy, schedule: Schedule, noise: torch.Tensor, model) -> RunTrace:
    steps = f"{schedule.total} step{'s'[: schedule.total > 1]}"
    about = ", ".join([schedule.sampler, steps, *_part(schedule, model), " x ".join(map(str, noise.shape))])
    origin = _origin()
    state = get_progress_state() if origin[1] else None
    made = recipe(state.dynprompt, origin[1]) if state and state.prompt_id == origin[0] else ""
    return RunTrace(policy.describe(), schedule.total, origin=origin, recipe=made, about=about)


def _part(schedule: Schedule, model) -> Iterator[str]:
    """From which noise to which a run goes, where that is a part of the model's: what tells two stages apart."""
    first, last = schedule.sigmas[0], schedule.sigmas[-1]
    most = float(getattr(model.get_model_object("model_sampling"), "sigma_max", first))
    if last > 0 or first < most * 0.999:
        yield f"noise {first:.3g} to {last:.3g}"


def _origin() -> tuple[str, str]:
    """The prompt and the node of it that is executed; both empty outside of one."""
    context = get_executing_context()
    return (context.prompt_id, context.node_id) if context else ("", "")
