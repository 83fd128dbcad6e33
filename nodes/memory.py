"""What a cache will hold, told from shapes before anything is computed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.samplers import CFGGuider

from ..cache_core.adapters import adapter_for, misfit, sites_of, uncompiled, unwrapped
from ..cache_core.codecs import CODECS, Codec
from ..cache_core.policies import CachePolicy
from ..cache_core.run import CacheRun
from ..cache_core.sites import Action, Schedule, Site
from ..cache_core.trace import human_bytes

TEXT, STEPS = 256, 50
"""Tokens of text and steps that are supposed beforehand; sampling counts the real ones."""

PADDED = {"Flux2": 512, "Anima": 512, "LTXAV": 1024}
"""Tokens to which the host, for a model of this class of its own, fills up a shorter text."""


class Part(NamedTuple):
    """One cond of a sampling run."""

    rows: int
    sampled: tuple[int, ...]  # (C, *space) of its latent as it is sampled; one of several parts is packed: (1, numbers)
    latents: list[tuple[int, ...]]  # (C, *space): its own, or each of its parts, then those of its references
    text: int  # tokens


def expected_bytes(model, run: CacheRun, parts: Iterable[Part]) -> int:
    """What `run` will hold of these conds of a ModelPatcher's model."""
    if not run.keeps:
        return 0
    parts, codec, total = list(parts), run.store.codec, 0
    if run.policy.level == "model" or run.observers:
        total += sum(codec.nbytes((part.rows, *part.sampled), torch.float32) for part in parts)
    if run.wants_branches:
        each = bytes_of_sites(model, run.policy, run.total, parts, codec)
        total += sum(nbytes for site, nbytes in each.items() if run.holds(site))
    return total * run.store.history + bytes_aside(model, run, parts)


def bytes_aside(model, run: CacheRun, parts: Iterable[Part]) -> int:
    """What the policy and its corrector will hold on the device besides features."""
    if not run.keeps:
        return 0
    aside = run.policy.aside.expected(model.load_device, _dtype(model)) if run.policy.aside else 0
    if run.corrector:
        guided = next(iter(parts))  # every cond has the rows and the latent of the whole
        aside += run.corrector.held * torch.float32.itemsize * math.prod((guided.rows, *guided.sampled))
    return aside


def beyond(model, run: CacheRun, expected: int) -> str | None:
    """Why a run cannot hold so many bytes at all, in words."""
    there = _memory(model, run.store.codec)
    if run.observers or expected <= there:
        return None
    return (
        f"its cache would take {human_bytes(expected)}, and {'the device' if run.store.codec.on_device else 'the computer'} has "
        f"{human_bytes(there)} of memory; put Memory Budget behind the policy, use Forecast Policy, which holds a few latents, or "
        "FORA Policy with scope 'whole network'"
    )


def _memory(model, codec: Codec) -> int:
    """Of what features are kept on, in all."""
    return comfy.model_management.get_total_memory(model.load_device if codec.on_device else torch.device("cpu"))


def _dtype(model) -> torch.dtype:
    """Of the features."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def bytes_of_sites(model, policy: CachePolicy, total: int, parts: list[Part], codec: Codec) -> dict[Site, int]:
    """What keeping one output of every branch and of STACK takes, for all of these conds in a run of `total` steps.

    With what the policy asks to note of tokens, and how often they were passed by, where it computes some of them.
    """
    network = unwrapped(model.model.diffusion_model)
    adapter = adapter_for(network)
    if adapter is None:
        return {}
    dtype, steps = _dtype(model), Schedule(total).evaluations
    of_token: dict[Site, int] = {}
    found: Counter[Site] = Counter()
    with uncompiled(network):
        marked = [b.sites[name] for b in adapter.blocks(network) for what, name in b.marks if what == policy.marks]
        for part in parts:
            for site, (tokens, width) in adapter.sizes(network, part.latents, part.text).items():
                if site not in of_token:
                    passed_by = any(policy.decide(step, site) is Action.PARTIAL for step in steps)
                    of_token[site] = torch.float32.itemsize * (site in marked) + torch.int16.itemsize * passed_by
                found[site] += codec.nbytes((part.rows, tokens, width), dtype) + part.rows * tokens * of_token[site]
    return found


def flops_of_sites(model, parts: list[Part]) -> dict[Site, int]:
    """Operations that computing every branch once takes, and STACK, for all of these conds."""
    network = unwrapped(model.model.diffusion_model)
    adapter, found = adapter_for(network), Counter()
    with uncompiled(network):
        for part in parts if adapter else ():
            for site, flops in adapter.flops(network, part.latents, part.text).items():
                found[site] += part.rows * flops
    return found


def informed(schedule: Schedule, model, policy: CachePolicy, parts: list[Part], codec: Codec) -> Schedule:
    """With what keeping and computing takes, and with the room for it, where a policy must know."""
    if not policy.sized(schedule):
        return schedule
    nbytes = bytes_of_sites(model, policy.prepared(schedule), schedule.total, parts, codec)
    flops = flops_of_sites(model, parts)
    room = _memory(model, codec) - model.model_size()
    return replace(schedule, nbytes=_by_name(nbytes), flops=_by_name(flops), room=room)


def frames_of(latents: Iterable[tuple[int, ...]]) -> int:
    """Of the video among latents (C, *space): 1 where there is none, 0 where there are no latents."""
    return max((latent[1] if len(latent) == 4 else 1 for latent in latents), default=0)


def _by_name(table: dict[Site, int]) -> dict[str, int]:
    return {site.name: number for site, number in table.items()}


def parts_of(guider, shape: tuple[int, ...], parts: Iterable[tuple[int, ...]] | None = None) -> list[Part]:
    """The conds that a guider will sample, for latents of this shape (B, C, *space), made of parts of these shapes."""
    whole = guider.model_options.get("disable_cfg1_optimization")
    skipped = {"negative"} if math.isclose(guidance_of(guider), 1.0) and not whole else set()
    batch, *latent = shape
    network = guider.model_patcher.model.diffusion_model
    adapter = adapter_for(network)
    least = max(PADDED.get(kind.__name__, 0) for kind in type(guider.model_patcher.model).__mro__)
    return [
        Part(
            batch,
            tuple(latent),
            [
                *(tuple(part[1:]) for part in parts or [shape]),
                *(tuple(r.shape[1:]) for r in (adapter.references(network, cond) if adapter else ())),
            ],
            max(adapter.text(cond) if adapter else 0, least),
        )
        for role, conds in guider.conds.items()
        if role not in skipped
        for cond in conds
    ]


def guidance_of(guider) -> float:
    """The cfg of a GUIDER, 1 where it has one cond alone, 0 where it guides in a way of its own."""
    if len(guider.conds) == 1:
        return 1.0
    return guider.cfg if type(guider).predict_noise is CFGGuider.predict_noise else 0.0


FRAMES = {"LTXV": 8, "LTXAV": 8, "MiniMaxH3AV": 3.4}
"""Frames per latent frame where they are other than hosts say, or than 4 where these say nothing."""
SOUNDS = {"ACEAudio": ((16,), 44100 / 512 / 8), "ACEAudio15": ((), 48000 / 1920)}
"""Latents of music: (what stands before their frames, frames per second)."""


def usual(model) -> dict[str, list[Part]]:
    """A positive and a negative prompt for usual sizes of what this model makes, by the name of the size."""
    form = model.model.latent_format
    down, frames = form.spacial_downscale_ratio, getattr(form, "temporal_downscale_ratio", None)
    frames = FRAMES.get(type(form).__name__) or frames or 4
    spaces: dict[str, tuple[int, ...]] = {}
    if sound := SOUNDS.get(type(form).__name__):
        spaces = {f"{seconds} s of music": (*sound[0], int(seconds * sound[1])) for seconds in (30, 120)}
    elif form.latent_dimensions == 2:
        spaces = {f"{side} x {side}": (side // down,) * 2 for side in (512, 1024)}
    elif form.latent_dimensions == 3:
        spaces = {f"{n} frames of 832 x 480": (int((n - 1) / frames) + 1, 480 // down, 832 // down) for n in (33, 81)}
    latents = {name: (form.latent_channels, *space) for name, space in spaces.items()}
    return {name: [Part(2, latent, [latent], TEXT)] for name, latent in latents.items()}


def supposed(model, policy: CachePolicy, parts: list[Part], codec: Codec) -> Schedule:
    """A run with these conds, of as many steps as the policy was made for, else of a usual number."""
    sites, latents = sites_of(model.model.diffusion_model), (latent for part in parts for latent in part.latents)
    schedule = Schedule(made_for(policy), sites=sites, frames=frames_of(latents))
    return informed(schedule, model, policy, parts, codec)


def made_for(policy: CachePolicy | None) -> int:
    """Steps of the one schedule that a policy, or one that it corrects, belongs to: those of a router, or found by a search."""
    while policy is not None:
        steps = getattr(policy, "steps", 0)
        if number := steps if isinstance(steps, int) else len(steps):
            return number
        policy = getattr(policy, "base", None)
    return STEPS


def memory(model, policy: CachePolicy, measure: str, store: str) -> str:
    """One sentence: what the cache will hold, for usual sizes of what this model makes."""
    if not policy.history and measure == "off":
        return f"{policy.describe()} keeps nothing."
    if policy.level != "model" and (reason := misfit(model.model.diffusion_model)):
        return f"{policy.describe()} keeps nothing: {reason}."
    codec, each = CODECS[store], []
    for name, parts in usual(model).items():
        run = CacheRun(policy, supposed(model, policy, parts, codec), measure=measure, codec=codec)
        run.keeps = True  # whatever it has against so many steps
        each.append(f"{human_bytes(expected_bytes(model, run, parts))} for {name}")
    if not each:
        return f"What {policy.describe()} takes is told in the log when sampling begins."
    where = "the device's memory" if codec.on_device else "the computer's main memory"
    further = ", and up to five latents for its corrector" if policy.corrects else ""
    return (
        f"{policy.describe()} takes about {' and '.join(each)} of {where} per picture, with a positive and a negative "
        f"prompt, store = {store}{further}."
    )
