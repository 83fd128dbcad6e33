"""The tables of the papers in miniature: what each cache does to the pictures of a DiT, and what it saves.

    python tools/dev.py bench papers                                  # everything: DDIM 20 and 50, 5,000 images a row, hours
    python tools/dev.py bench papers --rows 'fora-*' --minutes 60     # these rows, for an hour; call it again to go on
    python tools/dev.py bench papers --table --write                  # what there is so far, into docs/papers.md and .json

Rows that docs/papers.json has of the same setting stay in the table until they are measured here with as many pictures.

Results are kept batch by batch under --out, so a run may be stopped anywhere and is continued by the same command; with
--ray its batches are tasks of a Ray cluster (docs/fleet.md), while wall time is still measured where it was called. Priors
and the router are made by the command itself, of other seeds than those reported. Another checkpoint is given by --model
(and --vae, where it works on latents), with --gpu where there is one; --scheduler normal and --router take the papers'
steps and the published gates. Its Frechet distance, precision and recall need
features that we do not ship: --export writes every row's pictures as the samples.npz that the ADM evaluator reads; or
put your extractor's features.npz (`features`, N x D, in the order of the pictures) beside it and give the reference's
with --reference (`features`, or `mu` and `sigma`).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

import fleet
import torch

from ..priors.files import write
from .cells import Cell
from .judges import Judge, demo_judge, file_judge
from .pages import remarked
from .sampled import SAMPLER, Aids, Bench, side_of
from .tables import CLAIMS, SEED, UNCACHED, Ready, Tables

ROOT = Path(__file__).resolve().parent.parent
DEMO, OUT, DOC = ROOT / "demo" / "shapes-dit.safetensors", ROOT / "demo" / "out" / "papers", ROOT / "docs" / "papers.md"


CLASSIFIER = ROOT / "demo" / "shapes-classifier.safetensors"


def joined(report: dict, before: dict, order: Iterable[str]) -> dict:
    """A report with what an earlier one of the same setting has beyond it: rows, claims, and pictures of a row."""
    found = {
        name: [{"made": r["made"], **r["rows"][name]} for r in (report, before) if name in r["rows"]] for name in order
    }
    rows = {name: max(of, key=lambda row: row["images"]) for name, of in found.items() if of}
    claims: dict[str, dict] = {}
    for of in (before, report):
        for claim in of["claims"]:
            known = claims.setdefault(claim["claim"], claim)
            if _judged_by(of, claim) >= _judged_by(before, known):
                claims[claim["claim"]] = claim
    return {
        **report,
        "made": sorted({*before["made"], *report["made"]}),
        "rows": rows,
        "claims": [claims[claim] for claim, *_ in CLAIMS if claim in claims],
    }


def _judged_by(report: dict, claim: dict) -> int:
    """Pictures behind a claim; those of before said it with their rows only."""
    before, after = next(pair for name, *pair, _ in CLAIMS if name == claim["claim"])
    return claim.get("images") or min(report["rows"][name]["images"] for name in (before, after))


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
        lines.append(f"| {c['claim']} | {c['published']:+.1f} % | {c['here']:+.1f} +- {c['deviation']:.2f} % |")
    return "\n".join([*lines, "", f"Made in batches of {report['batch']} on {makers(report)}."])


def makers(report: dict) -> str:
    """The machines of a table; all but the one of most rows with the names of theirs."""
    rows: dict[tuple, list[str]] = {}
    for name, row in report["rows"].items():
        rows.setdefault(tuple(row.get("made", report["made"])), []).append(name)
    most, *others = sorted(rows, key=lambda made: -len(rows[made])) or [tuple(report["made"])]
    return "; ".join(["; ".join(most), *(f"{', '.join(rows[made])} on {'; '.join(made)}" for made in others)])


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
            "DiT-XL/2 on ImageNet at DDIM 20, ours with the standard deviation of a paired bootstrap over the pictures (of one model, one prior, one router and one set to compare with).",
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
    parser.add_argument(
        "--together", type=int, default=0, help="of a batch in one forward, by default all: a processor likes few"
    )
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
    parser.add_argument(
        "--router", type=Path, help="as the authors of L2C published it (.pt), in place of training one"
    )
    parser.add_argument(
        "--scheduler",
        default=SAMPLER[1],
        help="as the host names it: normal takes the papers' steps, 999 to 0, and ddim_uniform, as usual here, 951 to 1",
    )
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
    import comfy.samplers
    import comfy.sd
    import comfy.utils

    from ..models.host import load

    if args.scheduler not in comfy.samplers.SCHEDULER_NAMES:
        raise SystemExit(
            f"no scheduler is called {args.scheduler}; there are: {', '.join(comfy.samplers.SCHEDULER_NAMES)}"
        )
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
    bench = Bench(model, steps, args.cfg, size, vae, args.together, args.scheduler)
    chosen = {name: getattr(args, name) for name in ("penalty", "iterations", "share", "threshold")}
    aids = Aids(bench, folder, args.calibration, **chosen, authors=args.router)
    return Tables(bench, judge, aids, folder, args.images, args.batch, args.export)


def spread_by(args: argparse.Namespace) -> Callable[[Tables, Ready, Iterator], Iterator]:
    """What samples batches as tasks of a Ray cluster."""
    files = [file for file in (args.model, args.vae, args.reference or CLASSIFIER) if file]
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
    args.model, args.vae, args.router = (of and Path(of) for of in (args.model, args.vae, args.router))
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
        tables = tables_of(args, steps, folder, setting, judge)
        Cell(folder).claim(
            model=known,
            steps=steps,
            cfg=args.cfg,
            size=size,
            batch=args.batch,
            sampler=list(tables.bench.sampler),
            seed=SEED,
        )
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
        others = [other for other in known_before if setting_of(other) not in map(setting_of, reports)]
        kept = sorted((of for of in (*others, *reports) if of["rows"]), key=lambda of: (of["steps"], of["cfg"]))
        text = remarked(DOC, document(kept, " ".join(argv)))
        write(DOC, text)
        write(record, json.dumps(kept, indent=1) + "\n")
