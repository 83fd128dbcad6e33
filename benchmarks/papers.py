"""The tables of the papers in miniature: what each cache does to the pictures of a DiT, and what it saves.

    python tools/dev.py bench papers                                  # everything: DDIM 20 and 50, 5,000 images a row, hours
    python tools/dev.py bench papers --rows 'fora-*' --minutes 60     # these rows, for an hour; call it again to go on
    python tools/dev.py bench papers --table --write                  # what there is so far, into docs/papers.md and .json

Rows that docs/papers.json has of the same setting stay in the table until they are measured here with as many pictures.

Results are kept batch by batch under --out, so a run may be stopped anywhere and is continued by the same command; with
--ray its batches are tasks of a Ray cluster (docs/fleet.md), while wall time is still measured where it was called. Priors
and the router are made by the command itself, of other seeds than those reported. Another checkpoint is given by --model
(and --vae, where it works on latents), with --gpu where there is one. Its Frechet distance, precision and recall need
features that we do not ship: --export writes every row's pictures as the samples.npz that the ADM evaluator reads; or
put your extractor's features.npz (`features`, N x D, in the order of the pictures) beside it and give the reference's
with --reference (`features`, or `mu` and `sigma`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import fleet
import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..cache_core.policies import EOC, FORA, GOC, CachePolicy, DuCa, Full, Taylor, ToCa
from ..cache_core.policies.fora import PRESETS
from ..cache_core.policies.goc import QUEUES
from ..cache_core.trace import Trace
from ..plots.metrics import psnr, relative_l2, ssim
from ..priors.files import replace
from ..priors.inflections import inflections
from ..priors.trend import Trend
from . import flops
from .cells import Cell, packed
from .judges import Judge, demo_judge, file_judge
from .machine import device, machine
from .metrics import frechet, moments, precision_recall
from .pages import remarked
from .sampled import SAMPLER, Aids, Bench, say, side_of

ROOT = Path(__file__).resolve().parent.parent
DEMO, OUT, DOC = ROOT / "demo" / "shapes-dit.safetensors", ROOT / "demo" / "out" / "papers", ROOT / "docs" / "papers.md"
SEED, TIMED_SEED = 1_000_000, 3_000_000
ETAS = (0.25, 0.5, 0.8, 1.0, 1.2)
UNCACHED = "none"

CLAIMS = (
    ("EOC on FORA 25 %", "fora-25", "fora-25+eoc", -4.6),
    ("EOC on FORA 50 %", "fora-50", "fora-50+eoc", -15.1),
    ("EOC on FORA 75 %", "fora-75", "fora-75+eoc", -28.8),
    ("EOC on L2C", "l2c", "l2c+eoc", -2.5),
    ("GOC, eta 1.2, on FORA 25 %", "fora-25", "fora-25+goc-used-1.2", -8.9),
    ("GOC, eta 1.2, on FORA 50 %", "fora-50", "fora-50+goc-used-1.2", -43.0),
)
"""What the papers say of the Frechet distance, in percent: DiT-XL/2, ImageNet 256 x 256, DDIM 20, 50,000 images."""


class Row(NamedTuple):
    """What is sampled: the policy, made when it is needed; None is the model as it is. steps: the sampler's, 0 the usual."""

    policy: Callable[[], CachePolicy | None]
    steps: int = 0


class Ready(NamedTuple):
    """A row as it is sampled."""

    name: str
    policy: CachePolicy | None
    model: object
    trace: Trace
    steps: int


def rows(steps: int, aids: Aids) -> dict[str, Row]:
    """Every row of the table, by name."""
    found: dict[str, Callable] = {}
    bases: dict[str, Callable[[], CachePolicy]] = {
        f"fora-{n}": partial(FORA, **PRESETS[f"{n} %"]) for n in (25, 50, 75)
    }
    bases["l2c"] = aids.l2c
    for name, base in bases.items():
        found[name] = base
        found[f"{name}+eoc"] = lambda base=base: EOC(base(), Trend(aids.prior))
        for queue in QUEUES:
            for eta in ETAS:
                found[f"{name}+goc-{queue}-{eta:g}"] = lambda base=base, queue=queue, eta=eta: GOC(
                    base(), eta, queue, inflections(aids.prior), steps
                )
        for order in (1, 2):
            found[f"{name}+taylor-{order}"] = lambda base=base, order=order: Taylor(base(), order)
    for selection in ("random", "small values", "attention"):
        found[f"toca-{selection.replace(' ', '-')}"] = partial(ToCa, selection=selection)
    for selection in ("random", "small values", "large values"):
        found[f"duca-{selection.replace(' ', '-')}"] = partial(DuCa, selection=selection)
    fewer = {f"steps-{n}": Row(lambda: None, n) for n in (int(steps * share) for share in (0.75, 0.5, 0.25))}
    return {UNCACHED: Row(lambda: None)} | fewer | {name: Row(make) for name, make in found.items()}


@dataclass
class Tables:
    """All rows of one setting. Everything that was measured is in `folder`."""

    bench: Bench
    judge: Judge
    aids: Aids
    folder: Path
    images: int
    batch: int
    export: bool = False
    deadline: float = math.inf  # of time.monotonic
    spread: Callable[[Tables, Ready, Iterator], Iterator] | None = None  # samples batches, in place of `here`
    last: Ready | None = field(default=None, init=False)

    def __post_init__(self):
        self.rows = rows(self.bench.steps, self.aids)

    def cell(self, name: str) -> Cell:
        return Cell(self.folder / name)

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def run(self, name: str, rounds: int = 0, timed: int = 12) -> None:
        """Everything that is missing of one row. Raises RuntimeError when its policy declined to serve."""
        self.aids.used.clear()
        cell, row = self.cell(name), self.ready(name)
        said = row.policy.describe() if row.policy else ""
        cell.claim(policy=said, steps=row.steps, aids=sorted(self.aids.used))
        if "flops" not in cell.notes:
            cell.note(flops=self.flops(row.policy, row.steps))
        missing = (b for b in range(math.ceil(self.images / self.batch)) if not cell.has(b, "error", *self.kept(name)))
        units = ((batch, self.exact(name, batch)) for batch in takewhile(lambda _: not self.late(), missing))
        begin = time.perf_counter()
        for batch, data in (self.spread or Tables.here)(self, row, units):
            cell.keep(batch, data)
            say(f"{self.folder.name} {name}: batch {batch + 1}, {time.perf_counter() - begin:.1f} s")
            begin = time.perf_counter()
        if name != UNCACHED:
            self.time(cell, row.model, row.steps, rounds, timed)

    def ready(self, name: str) -> Ready:
        """A row with its policy on the model; the last one is kept."""
        from ..nodes.attach import attach

        if self.last is None or self.last.name != name:
            (make, steps), trace = self.rows[name], Trace()
            policy = make()
            model = attach(self.bench.model, policy, trace) if policy else self.bench.model
            self.last = Ready(name, policy, model, trace, steps or self.bench.steps)
        return self.last

    def here(self, row: Ready, units: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """(batch, its results as a file) of every (batch, uncached latents as a file), one after the other."""
        yield from ((batch, self.sampled(row, batch, exact)) for batch, exact in units)

    def sampled(self, row: Ready, batch: int, exact: bytes) -> bytes:
        """The results of a batch as a file."""
        labels = self.bench.labels(batch * self.batch, self.batch)
        found = self.bench.sample(row.model, labels, SEED + batch, row.steps).half().cpu()  # as kept: equal stays equal
        if row.trace.runs and row.trace.runs[-1].notes:
            raise RuntimeError(f"{row.name}: {' '.join(row.trace.runs[-1].notes)}")
        tables = self.judged(found, load(exact)["latents"] if exact else found, labels)
        kept = {"latents": found} if self.kept(row.name) else {}
        return packed({name: table.cpu() for name, table in (tables | kept).items()}, machine())

    def kept(self, name: str) -> tuple[str, ...]:
        """Tables that a row has beside its figures."""
        return ("latents",) if self.export or name == UNCACHED else ()

    def exact(self, name: str, batch: int) -> bytes:
        """The uncached latents of a batch, as a file; nothing for the uncached row itself."""
        return b"" if name == UNCACHED else save({"latents": self.cell(UNCACHED).get(batch)["latents"]})

    def judged(self, found: Tensor, exact: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One row per picture: what the table is made of."""
        if found is exact:
            found = exact = found.to(device())
        else:
            found, exact = found.to(device()), exact.to(device())
        out = {"error": relative_l2(found, exact)}
        pictures = self.bench.pictures(found)
        if pictures is not None:
            truth = pictures if found is exact else self.bench.pictures(exact)
            out |= {"psnr": psnr(pictures, truth), "ssim": ssim(pictures, truth)}
        if self.judge.features:
            out |= {"features": self.judge.features(pictures), "right": self.judge.named(pictures) == labels}
        return out

    def flops(self, policy: CachePolicy | None, steps: int) -> float:
        """Ratio to uncached sampling, as the engine executes it."""
        full = flops.sampling(Full(), self.bench.config, self.bench.steps, self.bench.size)
        return flops.sampling(policy or Full(), self.bench.config, steps, self.bench.size) / full

    def time(self, cell: Cell, model, steps: int, rounds: int, count: int) -> None:
        """Uncached and cached sampling in turn, so that whatever else the machine does falls on both."""
        labels = self.bench.labels(0, count)

        def seconds(sampled, steps: int = 0) -> float:
            begin = time.perf_counter()
            self.bench.sample(sampled, labels, TIMED_SEED, steps)
            return time.perf_counter() - begin

        kept = cell.notes.get("timed", {})
        pairs = kept["seconds"] if kept.get("machine") == machine() else []
        if len(pairs) < rounds and not self.late():
            seconds(self.bench.model)  # loads and warms
        while len(pairs) < rounds and not self.late():
            pairs.append([seconds(self.bench.model), seconds(model, steps)])
            cell.note(timed={"machine": machine(), "seconds": pairs})

    def features(self, name: str) -> Tensor | None:
        """Of the pictures so far: those of the judge, or those of somebody's own extractor."""
        file = self.folder / name / "features.npz"
        if self.judge.features or not file.exists():
            return self.cell(name).table("features", self.images)
        with np.load(file, allow_pickle=False) as opened:
            return torch.from_numpy(opened["features"][: self.images])

    def result(self, name: str) -> dict | None:
        """The figures of one row so far; None where there are none, infinite ones and those unknown are None."""
        cell = self.cell(name)
        error = cell.table("error", self.images)
        if error is None:
            return None
        features, notes = self.features(name), cell.notes
        out = {"images": len(error), "relative_l2": error.mean().item(), "flops": notes.get("flops")}
        for key, table in (("psnr", "psnr"), ("ssim", "ssim"), ("named_right", "right")):
            values = cell.table(table, self.images)
            out[key] = None if values is None else values.double().mean().item()
        if features is not None and self.judge.moments is not None:
            out["frechet"] = frechet(moments(features), self.judge.moments)
            if self.judge.real is not None:
                real = self.judge.real[: len(features)]
                out["precision"], out["recall"] = precision_recall(features.to(device()), real.to(device()))
        if pairs := notes.get("timed", {}).get("seconds"):
            out["time"] = statistics.median(own / full for full, own in pairs)
            out["rounds"] = len(pairs)
        elif name == UNCACHED:
            out["time"] = 1.0
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in out.items()}

    def claims(self) -> list[dict]:
        """Each published change of the Frechet distance beside ours, with its standard deviation in a paired bootstrap."""
        found = []
        for claim, before, after, published in CLAIMS:
            pair = (self.features(before), self.features(after))
            if self.judge.moments is None or any(f is None for f in pair) or len(pair[0]) != len(pair[1]):
                continue
            rng = torch.Generator().manual_seed(0)
            drawn = [torch.randint(len(pair[0]), (len(pair[0]),), generator=rng) for _ in range(30)]
            here, *again = (self._change(*(f if rows is None else f[rows] for f in pair)) for rows in (None, *drawn))
            found.append({"claim": claim, "published": published, "here": here, "deviation": statistics.stdev(again)})
        return found

    def _change(self, before: Tensor, after: Tensor) -> float:
        """Of the Frechet distance, in percent."""
        old, new = (frechet(moments(f), self.judge.moments) for f in (before, after))
        return 100 * (new / old - 1)

    def write_samples(self, name: str) -> None:
        """samples.npz with arr_0 (N, H, W, 3) in uint8, as the ADM evaluator reads it; pictures come batch by batch."""
        cell = self.cell(name)
        count = len(cell.table("error", self.images))
        side = self.bench.pictures(cell.get(0)["latents"][:1]).shape[-1]

        def write(part: Path) -> None:
            with zipfile.ZipFile(part, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as file:
                about = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
                np.lib.format.write_array_header_1_0(file, about)
                for latents in cell.parts("latents", self.images):
                    pictures = self.bench.pictures(latents).movedim(1, -1).mul(255).round().byte()
                    file.write(pictures.contiguous().numpy().tobytes())

        replace(cell.folder / "samples.npz", write)

    def report(self) -> dict:
        """Everything measured so far, also written as results.json."""
        results = {name: result for name in self.rows if (result := self.result(name))}
        made = sorted(set().union(*(self.cell(name).made() for name in results)))
        report = {**Cell(self.folder).notes["identity"], "made": made, "rows": results, "claims": self.claims()}
        replace(self.folder / "results.json", lambda part: part.write_text(json.dumps(report, indent=1) + "\n"))
        return report


def joined(report: dict, before: dict, order: Iterable[str]) -> dict:
    """A report with what an earlier one of the same setting has beyond it: rows, claims, and pictures of a row."""
    found = {name: [r["rows"][name] for r in (report, before) if name in r["rows"]] for name in order}
    rows = {name: max(of, key=lambda row: row["images"]) for name, of in found.items() if of}
    claims = {claim["claim"]: claim for claim in (*before["claims"], *report["claims"])}
    return {
        **report,
        "made": sorted({*before["made"], *report["made"]}),
        "rows": rows,
        "claims": [claims[claim] for claim, *_ in CLAIMS if claim in claims],
    }


def setting_of(report: dict) -> dict:
    """What two reports must have in common to be of the same pictures."""
    return {k: v for k, v in report.items() if k not in ("made", "rows", "claims")}


COLUMNS = (
    ("images", "images", "{}"), ("Frechet", "frechet", "{:.3f}"), ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"), ("named right", "named_right", "{:.1%}"), ("relative L2", "relative_l2", "{:.4f}"),
    ("PSNR", "psnr", "{:.2f}"), ("SSIM", "ssim", "{:.4f}"), ("FLOPs", "flops", "{:.3f}"), ("wall time", "time", "{:.3f}"),
)  # fmt: skip


def markdown(report: dict) -> str:
    """The table of one setting, and what of the papers' claims is seen in it."""
    lines = [
        f"## DDIM {report['steps']} steps, cfg {report['cfg']:g}",
        "",
        "| row | " + " | ".join(head for head, _, _ in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, result in report["rows"].items():
        cells = ["" if result.get(key) is None else form.format(result[key]) for _, key, form in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if report["claims"]:
        lines += ["", "| change of the Frechet distance | published | here |", "|---|---|---|"]
    for c in report["claims"]:
        lines.append(f"| {c['claim']} | {c['published']:+.1f} % | {c['here']:+.1f} +- {c['deviation']:.1f} % |")
    return "\n".join([*lines, "", f"Made on {'; '.join(report['made'])}."])


def document(reports: list[dict], command: str) -> str:
    return "\n\n".join(
        [
            "# The papers' tables in miniature",
            f"Written by `python tools/dev.py bench papers {command}`. Every row draws the same labels and seeds; priors and "
            "routers come from other seeds, and nothing was tuned on the reported ones.",
            "Frechet distance, precision and recall (k = 3): in the penultimate layer of the demo's classifier, against as "
            "many pictures drawn afresh (for another model in the features that were given); named right: how often that classifier names what was asked for. Relative L2, PSNR "
            "and SSIM: of latents and pictures to the uncached ones of the same seeds, in floating point. FLOPs: counted "
            "through the engine; wall time: median over pairs sampled in turn; both as ratios to uncached sampling.",
            "`fora-50+goc-used-0.8` is GOC with the queue `used` and eta 0.8 on FORA 50 %; the published changes are those of "
            "DiT-XL/2 on ImageNet at DDIM 20, ours with the standard deviation of a paired bootstrap.",
            *map(markdown, reports),
        ]
    )


def parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=["*"], help="names or patterns such as 'fora-50*'")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--images", type=int, default=5000, help="per row")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, after the batch at hand")
    parser.add_argument("--table", action="store_true", help="sample nothing, show what there is")
    parser.add_argument("--write", action="store_true", help="write docs/papers.md")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timed samplings, per row")
    parser.add_argument("--timed", type=int, default=12, help="pictures of a timed sampling")
    parser.add_argument("--calibration", type=int, default=240, help="pictures that EOC and GOC are calibrated on")
    parser.add_argument("--penalty", type=float, default=5e-6, help="of an open gate, for L2C")
    parser.add_argument("--iterations", type=int, default=100, help="of router training, per cache step")
    parser.add_argument(
        "--share", type=float, default=0.22, help="of all branches, that L2C reuses: those of the lowest gates"
    )
    parser.add_argument("--threshold", type=float, help="in its place: reuse where a gate is at most this")
    parser.add_argument("--model", type=Path, default=DEMO, help="another DiT checkpoint")
    parser.add_argument(
        "--size", type=int, default=0, help="side of a latent; by default what the checkpoint was trained at"
    )
    parser.add_argument("--vae", type=Path, help="decodes its latents")
    parser.add_argument("--reference", type=Path, help=".npz with features, or mu and sigma, of real pictures")
    parser.add_argument("--export", action="store_true", help="write samples.npz of every row")
    parser.add_argument("--out", type=Path, default=OUT)
    fleet.options(parser)
    args = parser.parse_args(argv)
    if min(args.images, args.batch, args.timed, args.calibration, args.iterations, args.cpus, *args.steps) < 1:
        parser.error("--images, --batch, --timed, --calibration, --iterations, --cpus and --steps must be 1 or more")
    return args


def opened(args: argparse.Namespace) -> tuple[object, int, object]:
    """(model, side of a latent, VAE or None)"""
    import comfy.sd
    import comfy.utils

    from ..models.host import load

    model = load(str(args.model))
    config = model.model.diffusion_model.config
    size = side_of(config, args.size, args.model.name)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(args.vae), safe_load=True)) if args.vae else None
    if args.export and config.in_channels != 3 and vae is None:
        raise SystemExit("--export writes pictures, and this model draws latents: give --vae")
    return model, size, vae


def judge_of(args: argparse.Namespace, setting: tuple, count: int) -> Judge:
    """count: how many pictures to draw where they are judged as shapes."""
    model, size, _ = setting
    config = model.model.diffusion_model.config
    of_shapes = (config.in_channels, config.num_classes, size) == (3, 12, 32) and args.reference is None
    return demo_judge(count) if of_shapes else file_judge(args.reference)


def tables_of(args: argparse.Namespace, steps: int, folder: Path, setting: tuple, judge: Judge) -> Tables:
    model, size, vae = setting
    bench = Bench(model, steps, args.cfg, size, vae)
    chosen = {name: getattr(args, name) for name in ("penalty", "iterations", "share", "threshold")}
    aids = Aids(bench, folder, args.calibration, **chosen)
    return Tables(bench, judge, aids, folder, args.images, args.batch, args.export)


def spread_by(args: argparse.Namespace) -> Callable[[Tables, Ready, Iterator], Iterator]:
    """What samples batches as tasks of a Ray cluster."""
    files = [file for file in (args.model, args.vae) if file]
    settings = fleet.settings(args, "ray", "cpus", "rows", "minutes", "out")

    def spread(tables: Tables, row: Ready, units: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        aids = {name: (tables.folder / name).read_bytes() for name in tables.aids.used}
        named = ((tables.bench.steps, row.name, *unit) for unit in units)
        for (*_, batch, _), data in fleet.results(unit, settings, named, args, files, aids):
            yield batch, data

    return spread


@lru_cache(maxsize=1)
def _tables(settings: str, steps: int) -> Tables:
    """Those of a worker, which writes nothing."""
    args = fleet.restored(settings)
    args.model, args.vae = Path(args.model), args.vae and Path(args.vae)
    setting = opened(args)
    judge = judge_of(args, setting, 12) if args.reference is None else Judge(None, None, None)
    return tables_of(args, steps, Path(), setting, judge)


@torch.inference_mode()
def unit(settings: str, aids: dict[str, bytes], steps: int, name: str, batch: int, exact: bytes) -> bytes:
    """The results of a batch of a row, sampled by a worker."""
    tables = _tables(settings, steps)
    tables.aids.hold(aids)
    return tables.sampled(tables.ready(name), batch, exact)


@torch.inference_mode()
def main(argv: list[str]) -> None:
    args = parsed(argv)
    setting = _, size, _ = opened(args)
    judge = judge_of(args, setting, args.images)
    deadline, reports, known = time.monotonic() + 60 * args.minutes, [], fleet.digest(args.model)
    record = DOC.with_suffix(".json")
    known_before = json.loads(record.read_text()) if record.exists() else []
    for steps in args.steps:
        folder = args.out / f"{args.model.stem}-{steps}"
        Cell(folder).claim(
            model=known, steps=steps, cfg=args.cfg, size=size, batch=args.batch, sampler=list(SAMPLER), seed=SEED
        )
        tables = tables_of(args, steps, folder, setting, judge)
        tables.deadline, tables.spread = deadline, spread_by(args) if args.ray else None
        chosen = [n for n in tables.rows if n != UNCACHED and any(fnmatch(n, p) for p in args.rows)]
        if not chosen and UNCACHED not in args.rows:
            raise SystemExit(f"no row is called {' or '.join(args.rows)}; there are: {', '.join(tables.rows)}")
        for name in [UNCACHED, *chosen] if not args.table else []:
            if not tables.late():
                tables.run(name, args.rounds, args.timed)
            if args.export and tables.cell(name).table("latents", args.images) is not None:
                tables.write_samples(name)
        report = tables.report()
        before = [other for other in known_before if setting_of(other) == setting_of(report)]
        reports.append(joined(report, before[0], tables.rows) if before else report)
        print("\n" + markdown(reports[-1]), flush=True)
    if args.write:
        text = remarked(DOC, document(reports, " ".join(argv)))
        replace(DOC, lambda part: part.write_text(text))
        others = [other for other in known_before if setting_of(other) not in map(setting_of, reports)]
        replace(record, lambda part: part.write_text(json.dumps([*others, *reports], indent=1) + "\n"))
