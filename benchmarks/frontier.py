"""Fidelity against evaluations and wall time: fewer steps, published caches, our forecast, our plan.

    python tools/dev.py bench frontier --write                                    # everything, hours on a CPU
    python tools/dev.py bench frontier --model dit --steps 20 --cfg 1.5 --sampler euler --pairs 12

Every setting is kept under --out as soon as it is measured, so that the command may be stopped and goes on from there; what
docs/frontier.json has of the same arguments is not measured again.
Every method samples the same prompts and seeds, which no plan was made with. Error: relative L2 distance of the final
latent to that of all steps; PSNR against the range of that latent.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache_core.adapters import adapter_for, unwrapped
from ..cache_core.extrapolation import front_loaded, spread
from ..cache_core.policies import CachePolicy, Forecast, Full, Taylor
from ..cache_core.sites import Schedule
from ..plots.export import png
from ..plots.metrics import relative_l2
from ..priors.files import write
from ..priors.plan import Plan, forecasts, search_plans
from ..priors.search import Outcome, Search
from ..priors.statistics import Statistics
from .baselines import WINDOWS, Given, Spectrum, growing, host_cache, spectrum_node
from .curves import draw
from .large import enlarged
from .machine import machine
from .pages import remarked
from .standings import DEFAULT, HOST, PLAN, Point, Setting, page, pictured, summary, targets

ROOT = Path(__file__).resolve().parent.parent
OUT, DOC = ROOT / "demo" / "out" / "frontier", ROOT / "docs" / "frontier.md"
THRESHOLDS = (3.0, 1.6, 0.8, 0.4, 0.2, 0.1, 0.05, 0.02)


class Sampled(NamedTuple):
    latents: Tensor
    evaluations: float  # of the network, per picture
    seconds: float


@dataclass
class Bench:
    """One model, one setting, one set of prompt x seed pairs."""

    model: object
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    batches: list[tuple]  # (positive, negative, latent, seed)

    def sample(self, model, steps: int = 0, sampler: str = "", pictures: int | None = None) -> Sampled:
        """pictures: the first so many, or all."""
        import comfy.sample

        found, begin = [], time.perf_counter()
        with counted(self.model) as calls:
            for positive, negative, latent, seed in self.batches:
                left = None if pictures is None else pictures - sum(map(len, found))
                if left == 0:
                    break
                noise = comfy.sample.prepare_noise(latent, seed)
                found.append(
                    comfy.sample.sample(
                        model, noise[:left], steps or self.steps, self.cfg, sampler or self.sampler, self.scheduler, positive,
                        negative, latent[:left], disable_pbar=True, seed=seed,
                    )
                )  # fmt: skip
        latents = torch.cat(found)
        conds = 1 if math.isclose(self.cfg, 1.0) else 2
        return Sampled(latents, sum(calls) / conds / len(latents), time.perf_counter() - begin)

    def sigmas(self, steps: int) -> list[float]:
        import comfy.samplers

        return comfy.samplers.KSampler(self.model, steps, "cpu", self.sampler, self.scheduler).sigmas.tolist()

    def schedule(self) -> Schedule:
        import comfy.samplers

        from ..nodes.attach import schedule_of

        sampler = comfy.samplers.sampler_object(self.sampler)
        return schedule_of(self.model, sampler, torch.tensor(self.sigmas(self.steps)), self.cfg)

    def settings_for(self, evaluations: int) -> int:
        """What to ask the host for to get at most so many steps; some of its schedulers add one."""
        return max(n for n in range(1, evaluations + 1) if len(self.sigmas(n)) - 1 <= evaluations)

    def policy(self, policy: CachePolicy, pictures: int | None = None) -> Sampled:
        from ..nodes.attach import attach

        return self.sample(attach(self.model, policy), pictures=pictures)


@contextmanager
def counted(model) -> Iterator[list[int]]:
    """The rows of every call that the network's last block computes.

    Where it is skipped, its layers are not called; the first block's are once more, when the adapter is tried on it.
    """
    network, calls = unwrapped(model.model.diffusion_model), []
    last = adapter_for(network).blocks(network)[-1].module
    layer = next(layer for layer in last.modules() if isinstance(layer, torch.nn.Linear))
    hook = layer.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        hook.remove()


def measured(method: str, found: Sampled, exact: Tensor) -> Point:
    errors, flat = relative_l2(found.latents, exact), exact.double().flatten(1)
    gap = found.latents.double().flatten(1) - flat
    peak = flat.amax(1) - flat.amin(1)
    psnr = 20 * torch.log10(peak / gap.square().mean(1).sqrt().clamp_min(1e-12))
    doubt = errors.std().item() / math.sqrt(len(errors)) if len(errors) > 1 else 0.0
    return Point(method, found.evaluations, errors.mean().item(), doubt, psnr.mean().item(), found.seconds)


def settings(steps: int, count: int) -> dict[str, CachePolicy]:
    """Every method that computes a given number of steps, without a prior."""
    even = spread(steps, count)
    nothing = ((0.0, 0.0),) * steps
    return {
        "reuse": Forecast(computed=even, gains=nothing, corrector="off"),
        "linear in sigma": Forecast(computed=even, order=1, coordinate="sigma", corrector="off"),
        "Taylor 1": Taylor(Given(even), order=1),
        "Taylor 2": Taylor(Given(even), order=2),
        "Taylor 2, Spectrum's steps": Taylor(Given(growing(steps, count)), order=2),
        "Spectrum": Spectrum(growing(steps, count)),
        "Spectrum, at the output": Spectrum(growing(steps, count), level="model"),
        "Spectrum, ComfyUI node": spectrum_node(steps, count),
        DEFAULT: Forecast(speedup=steps / count),
    }


def trials(steps: int, count: int) -> dict[str, CachePolicy]:
    """Members of the family that are not the default, in the same table."""
    even, both, front = spread(steps, count), front_loaded(steps, count, 1.0), front_loaded(steps, count)
    return {
        f"{name}, {coordinate}, order {order}": Forecast(computed=computed, coordinate=coordinate, order=order)
        for name, computed in (("even", even), ("even with the last", both), ("front-loaded", front))
        for coordinate in ("sigma", "log snr", "step")
        for order in (1, 2)
    }


class Pairs(NamedTuple):
    """What plans are searched with, and what is found is judged by: other pairs than those that are told."""

    search: Bench
    judge: Bench

    def plans(self, counts: list[int], samplings: float, log: Callable) -> list[Plan]:
        """For these numbers of computed steps; none where the search may cost nothing."""
        if not samplings:
            return []
        watched = Statistics()
        search, judge = searching(self.search, watched), searching(self.judge)
        watched.end_trajectory(len(search.reference))
        begin = forecasts(search.schedule, watched.gram("positive"))
        plans = search_plans(search, begin, counts, samplings, judge)
        log(
            f"search: {search.spent:.1f} samplings of {len(search.reference)} pictures, {len(search.settings)} settings tried"
        )
        return plans


def searching(bench: Bench, *observers: Statistics) -> Search:
    from ..nodes.attach import attach

    full = bench.sample(attach(bench.model, Full(), observers=observers))

    def simulate(policy: CachePolicy, pictures: int) -> Outcome:
        found = bench.policy(policy, pictures)
        return Outcome(found.latents, found.evaluations / full.evaluations)

    return Search(simulate, full.latents, bench.schedule())


def run(bench: Bench, plans: list[Plan], counts: list[int], every: bool, log: Callable) -> list[Point]:
    """Every method, one after the other."""
    bench.sample(bench.model, 2)  # the first one of a size allocates
    full, steps = bench.sample(bench.model), len(bench.sigmas(bench.steps)) - 1
    points = [Point("all steps", full.evaluations, 0.0, 0.0, math.inf, full.seconds)]

    def note(method: str, found: Sampled) -> None:
        points.append(measured(method, found, full.latents))
        p = points[-1]
        log(f"{p.method:32} {p.evaluations:6.1f} {p.error:8.4f} +- {p.spread:.4f} {p.psnr:7.2f} dB {p.seconds:8.2f} s")

    for count in sorted(set(counts), reverse=True):
        for sampler in dict.fromkeys((bench.sampler, "euler", "dpmpp_2m")):
            note(f"fewer steps, {sampler}", bench.sample(bench.model, bench.settings_for(count), sampler))
        for method, policy in (settings(steps, count) | (trials(steps, count) if every else {})).items():
            note(method, bench.policy(policy))
        for plan in plans:
            if plan.evaluations == count:
                note(PLAN, bench.policy(plan.restored()))
                log(f"   {plan.settings['computed']} in {plan.settings['coordinate']}, {plan.error:.4f} when judged")
    for method, found in host_caches(bench, full.evaluations, counts):
        note(method, found)
    return points


def host_caches(bench: Bench, whole: float, counts: list[int]) -> Iterator[tuple[str, Sampled]]:
    """EasyCache and LazyCache from few evaluations to more than are compared; where their default window has no room for
    so few, without it, too. EasyCache is inert on models that do not ask its wrapper.
    """
    for node, window in product(HOST, WINDOWS):
        if window == WINDOWS[0]:
            most, fewest = max(counts), whole
        elif fewest <= min(counts):
            continue
        else:
            most = fewest
        for threshold in THRESHOLDS:
            found = bench.sample(host_cache(bench.model, node, threshold, window))
            if found.evaluations >= whole:
                break
            yield f"{node} {threshold:g}" + ", at any step" * (window != WINDOWS[0]), found
            fewest = min(fewest, found.evaluations)
            if found.evaluations > most:
                break


def pairs_of(drawer, count: int, batch: int, seed: int, times: int = 1) -> list[tuple]:
    """`count` prompt x seed pairs in batches, each of a seed of its own; latents `times` as large."""
    batches = []
    for first in range(0, count, batch):
        labels = torch.arange(first, min(first + batch, count)) * 5 % 12
        latent = drawer.latent(len(labels))
        size = (*latent.shape[:2], *(times * side for side in latent.shape[2:]))
        batches.append((*drawer.told(labels, seed + first), latent.new_zeros(size), seed + first))
    return batches


class Drawn(NamedTuple):
    """By which demo model pictures are drawn, and its usual cfg; `times` as large, with a shift that suits them."""

    by: str
    cfg: float
    times: int = 1
    shift: float = 1.0


MODELS = {
    "dit": Drawn("dit", 1.5),
    "flux": Drawn("flux", 3.0),
    "pixart": Drawn("pixart", 3.0),
    "flux-large": Drawn("flux", 3.0, times=3, shift=3.0),
}


def again(
    bench: Bench, calibration: Pairs, full: Sampled, setting: Setting, method: str, shared: bool, log: Callable
) -> None:
    """Measure a method of a setting anew, in place of its points; its times count as shares of what all steps take now."""
    steps, counts = len(bench.sigmas(bench.steps)) - 1, setting.counts
    if method == PLAN:
        plans = calibration.plans(counts, setting.about["samplings"], log)
        policies = [plan.restored() for plan in plans]
        setting.about["plans"] = [plan.as_dict() for plan in plans]
    else:
        policies = [settings(steps, count)[method] for count in counts]
    found, pace = [], setting.points[0].seconds / full.seconds
    for policy in policies:
        found.append(measured(method, bench.policy(policy), full.latents))
        found[-1].seconds *= pace
    setting.points[:] = [point for point in setting.points if point.method != method] + found
    for policy, point in zip(policies, found, strict=True):
        log(f"{method:32} {point.evaluations:6.1f} {point.error:8.4f}   {policy.describe()}")
    if shared or setting.machines[""] != machine():
        machines = setting.machines | {method: machine()}
        setting.about["machine"] = "; ".join(f"{of} on {on}" if of else on for of, on in machines.items())


def parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench frontier", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--file", type=Path, help="other weights than the demo's, for one model")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 28, 50])
    parser.add_argument("--cfg", type=float, nargs="+", help="by default 1 and the model's usual one")
    parser.add_argument("--sampler", nargs="+", default=["euler", "dpmpp_2m"], help="as the host names them")
    parser.add_argument("--scheduler", help="as the host names it; by default the demo model's")
    parser.add_argument("--pairs", type=int, default=64, help="held-out prompt x seed pairs")
    parser.add_argument(
        "--calibration",
        type=int,
        default=16,
        help="pairs that plans are searched with, and as many that what is found is judged by",
    )
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.4, 0.3, 0.25])
    parser.add_argument("--samplings", type=float, default=40, help="what the search may cost; 0: no plans")
    parser.add_argument("--every", action="store_true", help="also the coordinates, orders and schedules not chosen")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--again",
        nargs="+",
        choices=[*settings(20, 10), PLAN],
        metavar="METHOD",
        help="measure these methods anew where a setting was measured already",
    )
    parser.add_argument(
        "--anew",
        action="store_true",
        help="measure every method anew, with the plans that were found, where not all were in one go with nothing beside it",
    )
    parser.add_argument(
        "--repeat", action="store_true", help="measure all of it, also what is known, and search plans anew"
    )
    parser.add_argument("--shared", action="store_true", help="other work runs beside it: no wall times in the page")
    parser.add_argument("--table", action="store_true", help="sample nothing, show what there is")
    parser.add_argument("--write", action="store_true", help="write docs/frontier.md, frontier.json and frontier.png")
    parser.add_argument("--out", type=Path, default=OUT, help="where every setting is kept, and not measured again")
    args = parser.parse_args(argv)
    if args.repeat and args.again:
        parser.error("--repeat measures every method, --again some of what is known: give one of them")
    if args.file and len(args.model) > 1:
        parser.error("--file is of one --model")
    return args


def kept(args: argparse.Namespace) -> list[Setting]:
    """All that was measured in the same way, here or before, in the order of models, samplers, cfg and steps."""
    record = DOC.with_suffix(".json")
    reports = json.loads(record.read_text()) if record.exists() else []
    reports += [json.loads(file.read_text()) for file in args.out.glob("*.json")]
    alike = [s for s in map(Setting.parsed, reports) if measured_so(args, s.about)]
    found = {place(setting.about): setting for setting in alike}  # the last one of each place
    return [found[at] for at in sorted(found)]


def way(args: argparse.Namespace, model: str, steps: int) -> dict:
    """How a setting is measured: what figures are not compared across."""
    from judge import SAMPLERS, weights

    found = {name: getattr(args, name) for name in ("pairs", "calibration", "samplings")}
    drawn = MODELS[model]
    found |= {"scheduler": args.scheduler or SAMPLERS[drawn.by][1]}
    found |= {"counts": [round(steps * fraction) for fraction in args.fractions]}
    if drawn.times > 1:
        found |= {"times": drawn.times, "shift": drawn.shift}
    return found | {"weights": known_by(args.file or weights(drawn.by))}


@lru_cache
def known_by(file: Path) -> str:
    from fleet import digest

    return digest(file)


def measured_so(args: argparse.Namespace, about: dict) -> bool:
    if args.file and about["model"] not in args.model:
        return False
    return way(args, about["model"], about["steps"]).items() <= about.items()


def stem(args: argparse.Namespace, model: str, sampler: str, steps: int, cfg: float) -> str:
    """The name of a setting's file: one that is measured in another way than usual does not take the place of that."""
    usual, told = way(parsed([]), model, steps), [model, sampler, str(steps), f"{cfg:g}"]
    for name, value in way(args, model, steps).items():
        if value != usual.get(name):
            told.append(name + "+".join(map(str, value if isinstance(value, list) else [value])))
    return "-".join(told)


def place(about: dict) -> tuple:
    return (list(MODELS).index(about["model"]), *(about[key] for key in ("sampler", "cfg", "steps")))


def keep(file: Path, setting: Setting) -> None:
    write(file, json.dumps(setting.report, indent=1) + "\n")


def measure(args: argparse.Namespace, bench: Bench, calibration: Pairs, about: dict, log: Callable) -> None:
    """One setting, where it was not measured yet; else those of its methods that are asked for again."""
    name, sampler, steps, cfg = (about[key] for key in ("model", "sampler", "steps", "cfg"))
    file = args.out / f"{stem(args, name, sampler, steps, cfg)}.json"
    known = None if args.repeat else next((s for s in kept(args) if about.items() <= s.about.items()), None)
    if (known and (known.whole or not args.anew)) or args.again:
        log(f"{file.stem}: {'measured already' if known else 'not measured yet'}")
        if known and not args.again:
            log("\n" + known.table() + "\n")
        if known and args.again:
            bench.sample(bench.model, 2)  # the first one of a size allocates
            full = bench.sample(bench.model)
            for method in args.again:
                again(bench, calibration, full, known, method, args.shared, log)
                keep(file, known)
        return
    log(f"{name}, {sampler}, {steps} steps, cfg {cfg:g}, {args.pairs} held-out pairs")
    if known and "plans" in known.about:
        plans = [Plan.parsed(plan) for plan in known.about["plans"]]
    else:
        plans = calibration.plans(about["counts"], args.samplings, log)
    points = run(bench, plans, about["counts"], args.every, log)
    about |= {"machine": machine(), "alone": not args.shared, "plans": [plan.as_dict() for plan in plans]}
    keep(file, Setting(about, points))
    log("\n" + Setting(about, points).table() + "\n")


@torch.inference_mode()
def main(argv: list[str]) -> None:
    from judge import Drawer, weights

    args, log = parsed(argv), partial(print, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in () if args.table else args.model:
        drawn = MODELS[name]
        drawer = Drawer(drawn.by, args.file or weights(drawn.by))
        model = drawer.model if drawn.times == 1 else enlarged(drawer.model, drawn.times, drawn.shift)
        held_out = pairs_of(drawer, args.pairs, args.batch, 5000, drawn.times)
        seen = [pairs_of(drawer, args.calibration, args.batch, seed, drawn.times) for seed in (100, 300)]
        cfgs = args.cfg or [drawn.cfg, 1.0]
        for steps, cfg, sampler in product(args.steps, cfgs, args.sampler):
            about = {
                "model": name, "steps": steps, "cfg": cfg, "sampler": sampler, **way(args, name, steps),
            }  # fmt: skip
            common = (model, steps, cfg, sampler, about["scheduler"])
            calibration = Pairs(*(Bench(*common, pairs) for pairs in seen))
            measure(args, Bench(*common, held_out), calibration, about, log)
    settings = kept(args)
    log("\n".join([summary(settings), "", *targets(settings)]))
    if args.write:
        write(DOC, remarked(DOC, page(settings, " ".join(argv))))
        write(DOC.with_suffix(".json"), json.dumps([setting.report for setting in settings]) + "\n")
        if pictured(settings):
            write(DOC.with_suffix(".png"), png(draw(settings)))
