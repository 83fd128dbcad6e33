"""What each way of saving the cache's memory costs: python tools/dev.py bench memory [--networks dit flux].

The demo models are sampled with every second step reused: with each store of Apply Cache, and within parts of what
store = device takes, chosen by a prior of other seeds, without one, and blindly. Error: relative L2 distance of the final
latent to that without a cache, mean over held-out pictures. Time: of a sampling call, the ways in another order every
round, medians. Written to docs/memory.json and docs/memory.md, where networks that were not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from ..cache_core.adapters import sites_of
from ..cache_core.codecs import CODECS
from ..cache_core.policies import FORA, Budget, CachePolicy, Full
from ..cache_core.policies.budget import MIB, fitting
from ..cache_core.sites import Action, Schedule
from ..cache_core.trace import Trace, human_bytes
from ..plots.metrics import relative_l2
from ..priors.files import write
from ..priors.reuse import errors
from ..priors.statistics import Statistics
from .frontier import Bench, pairs_of
from .machine import device, device_name, versions

ROOT = Path(__file__).resolve().parent.parent
BASE, STEPS, BATCH = FORA(2, "aligned"), 20, 8
CFG = {"dit": 1.5, "flux": 3.0}
SHARES, DRAWS = (0.75, 0.5, 0.25), 2


class Way(NamedTuple):
    """How features are kept. timed: whether its time is of interest; ways of one name are averaged."""

    name: str
    policy: CachePolicy | None
    store: str = "device"
    timed: bool = True


@dataclass
class Row:
    name: str
    nbytes: float  # held in one sampling call
    reused: float  # of the blocks' arithmetic over the run
    error: float
    doubt: float  # standard error of its mean over pictures
    seconds: float | None = None
    faster: float | None = None  # than no cache, median over rounds


def calibrated(bench: Bench) -> tuple[tuple[str, float], ...]:
    """The error of reusing each branch, as a prior of these pictures tells it."""
    from ..nodes.attach import attach
    from ..nodes.calibrate import subject

    watching = Statistics(1)
    bench.sample(attach(bench.model, Full(), observers=(watching,)))
    watching.end_trajectory(sum(len(latent) for *_, latent, _ in bench.batches))
    about = replace(subject(bench.model), steps=bench.steps)
    return errors(watching.prior(about, (), ()), BASE, sites_of(bench.model.model.diffusion_model))


def told(bench: Bench) -> Schedule:
    """A run of this bench, with what keeping and computing each branch takes."""
    from ..nodes.memory import Part, informed

    positive, _, latent, _ = bench.batches[0]
    shape = tuple(latent.shape[1:])
    part = Part(len(latent), shape, [shape], positive[0][0].shape[1])
    schedule = Schedule(bench.steps, sites=sites_of(bench.model.model.diffusion_model))
    return informed(schedule, bench.model, Budget(BASE), [part, part], CODECS["device"])


def ways(schedule: Schedule, known: tuple[tuple[str, float], ...]) -> Iterator[Way]:
    yield Way("no cache", None)
    for store in CODECS:
        yield Way(f"everything, store = {store}", BASE, store)
    names = [site.name for site in schedule.sites]
    for share in SHARES:
        size = share * sum(schedule.nbytes[name] for name in names)

        def blind(name: str, worth: list[float], size: float = size, share: float = share) -> Way:
            each = {n: w * schedule.nbytes[n] for n, w in zip(names, worth, strict=True)}
            chosen = fitting(int(size), schedule.nbytes, each)
            return Way(f"{share:.0%} {name}", Budget(BASE, size / MIB, sites=chosen), timed=False)

        yield Way(f"{share:.0%} by the prior", Budget(BASE, size / MIB, known))
        yield Way(f"{share:.0%} without a prior", Budget(BASE, size / MIB), timed=False)
        yield blind("first blocks first", [len(names) - i for i in range(len(names))])
        yield blind("last blocks first", [i + 1 for i in range(len(names))])
        for draw in range(DRAWS):
            rng = random.Random(draw)
            yield blind(f"at random, mean of {DRAWS}", [1 + rng.random() for _ in names])


def measured(bench: Bench, known: tuple[tuple[str, float], ...], rounds: int) -> list[Row]:
    from ..nodes.attach import attach

    schedule = told(bench)
    exact, one, rng = bench.sample(bench.model).latents, replace(bench, batches=bench.batches[:1]), random.Random(0)
    rows, timed = [], {}
    for way in ways(schedule, known):
        trace = Trace()
        model = bench.model if way.policy is None else attach(bench.model, way.policy, trace, store=way.store)
        found = relative_l2(bench.sample(model).latents, exact)
        decided = trace.runs[-1].rows if trace.runs else ()
        kept = frozenset(row.site.name for row in decided if row.action is Action.REUSE)
        rows.append(
            Row(
                way.name, trace.runs[-1].peak_bytes if trace.runs else 0, Budget(BASE).share(schedule, kept),
                found.mean().item(), found.std().item() / len(found) ** 0.5,
            )
        )  # fmt: skip
        print(f"{way.name}: error {rows[-1].error:.4f}, {rows[-1].reused:.0%} reused", flush=True)
        if way.timed:
            timed[way.name] = model
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    order = list(timed)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            seconds[name].append(one.sample(timed[name]).seconds)
    stock = seconds[rows[0].name]
    for row in rows:
        if own := seconds.get(row.name):
            row.seconds = statistics.median(own)
            row.faster = statistics.median(a / b for a, b in zip(stock, own, strict=True))
    return [averaged(list(group)) for _, group in groupby(rows, key=lambda row: row.name)]


def averaged(rows: list[Row]) -> Row:
    numbers = {n: statistics.fmean(getattr(row, n) for row in rows) for n in ("nbytes", "reused", "error", "doubt")}
    return replace(rows[0], **numbers)


def table(report: dict) -> str:
    """docs/memory.md."""
    text = (
        f"# What saving the cache's memory costs\n\nWritten by `python tools/dev.py bench memory`: {report['about']}\n\n"
        f"{BASE.describe()}, {STEPS} steps; *held*, *time* and their shares are those of a sampling call of {BATCH} "
        "pictures with a positive and a negative prompt. *Error*: relative L2 distance of the final latent to that without "
        "a cache, mean over held-out pictures and its standard error. *Reused*: of the blocks' arithmetic. A share such as 75% is "
        "the budget, as a part of what store = device takes; the prior is of other seeds.\n"
    )
    for name, of in report["networks"].items():
        whole = of["rows"][1]["nbytes"]
        text += (
            f"\n## The demo {name}, cfg {of['cfg']:g}, {of['pictures']} pictures, {of['rounds']} rounds of timing\n\n"
        )
        if of.get("made", report["about"]) != report["about"]:
            text += f"{of['made']}\n\n"
        text += "| what is kept | held | of all | error | reused | time | faster |\n|---|---|---|---|---|---|---|\n"
        for row in of["rows"]:
            clock = f"{row['seconds']:.2f} s | {row['faster']:.2f}x" if row["seconds"] else " | "
            text += (
                f"| {row['name']} | {human_bytes(row['nbytes'])} | {row['nbytes'] / whole:.0%} "
                f"| {row['error']:.4f} ± {row['doubt']:.4f} | {row['reused']:.0%} | {clock} |\n"
            )
    return text


@torch.inference_mode()
def main(argv: list[str]) -> None:
    from judge import SAMPLERS, Drawer, weights

    parser = argparse.ArgumentParser(prog="dev.py bench memory", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=CFG, default=list(CFG))
    parser.add_argument("--pairs", type=int, default=BATCH, help="held-out prompt x seed pairs")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    args = parser.parse_args(argv)
    about = f"{platform.machine()}, {device_name()}, {versions()}."
    if device().type == "cpu":
        about += (
            " On a CPU, store = cpu is store = device: what their times differ by is the noise of all of them. On CUDA what is kept leaves "
            "the device in a stream of its own while the next branch is computed, which is not measured here."
        )
    file = ROOT / "docs" / "memory.json"
    report = json.loads(file.read_text()) if file.exists() else {"networks": {}}
    report["about"] = about
    for name in args.networks:
        drawer = Drawer(name, weights(name))
        common = (drawer.model, STEPS, CFG[name], *SAMPLERS[name])
        known = calibrated(Bench(*common, pairs_of(drawer, BATCH, BATCH, 100)))
        rows = measured(Bench(*common, pairs_of(drawer, args.pairs, BATCH, 5000)), known, args.rounds)
        report["networks"][name] = {
            "cfg": CFG[name],
            "pictures": args.pairs,
            "rounds": args.rounds,
            "made": about,
            "errors": dict(known),
            "rows": [asdict(row) for row in rows],
        }
        write(file, json.dumps(report, indent=1) + "\n")
        write(file.with_suffix(".md"), table(report))
        print(f"{name}: written to docs/memory.md", flush=True)
