"""What `bench papers` measures: every row of a table, sampled, judged and kept batch by batch."""

from __future__ import annotations

import json
import math
import statistics
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..cache_core.policies import EOC, FORA, GOC, CachePolicy, DuCa, Full, Taylor, ToCa
from ..cache_core.policies.fora import PRESETS
from ..cache_core.policies.goc import QUEUES
from ..cache_core.trace import Trace
from ..plots.metrics import psnr, relative_l2, ssim
from ..priors.files import replace, write
from ..priors.inflections import inflections
from ..priors.trend import Trend
from . import flops
from .cells import Cell, packed
from .judges import Judge
from .machine import device, machine
from .metrics import frechet, moments, precision_recall
from .sampled import Aids, Bench, say

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
        found[f"toca-{selection.replace(' ', '-')}"] = partial(ToCa, "dit", selection=selection)
    for selection in ("random", "small values", "large values"):
        found[f"duca-{selection.replace(' ', '-')}"] = partial(DuCa, "dit", selection=selection)
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
        missing = (b for b in range(math.ceil(self.images / self.batch)) if not cell.has(b, "error", *self.kept(name)))
        units = ((batch, self.exact(name, batch)) for batch in takewhile(lambda _: not self.late(), missing))
        begin = time.perf_counter()
        for batch, data in (self.spread or Tables.here)(self, row, units):
            cell.keep(batch, data)
            say(f"{self.folder.name} {name}: batch {batch + 1}, {time.perf_counter() - begin:.1f} s")
            begin = time.perf_counter()
        if "flops" not in cell.notes:
            cell.note(flops=self.flops(row.policy, row.steps))
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
        for run in row.trace.runs[-1:]:
            if wrong := [note for note in run.notes if note != run.remark]:
                raise RuntimeError(f"{row.name}: {' '.join(wrong)}")
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
        if policy is None:
            return steps / self.bench.steps
        config, size = self.bench.config, self.bench.size
        full = self.bench.steps * flops.sampling(Full(), config, 1, size)  # every step alike
        return flops.sampling(policy, config, self.bench.steps, size, sigmas=self.bench.sigmas()) / full

    def time(self, cell: Cell, model, steps: int, rounds: int, count: int) -> None:
        """Uncached and cached sampling in turn, so that whatever else the machine does falls on both."""
        labels = self.bench.labels(0, count)

        def seconds(sampled, steps: int = 0) -> float:
            begin = time.perf_counter()
            self.bench.sample(sampled, labels, TIMED_SEED, steps)
            return time.perf_counter() - begin

        kept = cell.notes.get("timed", {})
        pairs = kept["seconds"] if (kept.get("machine"), kept.get("pictures")) == (machine(), count) else []
        if len(pairs) < rounds and not self.late():
            seconds(self.bench.model)  # loads and warms
        while len(pairs) < rounds and not self.late():
            pairs.append([seconds(self.bench.model), seconds(model, steps)])
            cell.note(timed={"machine": machine(), "pictures": count, "seconds": pairs})

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
        out = {
            "images": len(error),
            "relative_l2": error.mean().item(),
            "flops": notes.get("flops"),
            "made": sorted(cell.made()),
        }
        for key, table in (("psnr", "psnr"), ("ssim", "ssim"), ("named_right", "right")):
            values = cell.table(table, self.images)
            out[key] = None if values is None else values.double().mean().item()
        if features is not None and features.isfinite().all() and self.judge.moments is not None:
            out["frechet"] = frechet(moments(features), self.judge.moments)
            if self.judge.real is not None:
                drawn = torch.randperm(len(self.judge.real), generator=torch.Generator().manual_seed(0))
                real = self.judge.real[drawn[: len(features)]]  # those of a file may be in the order of their classes
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
            known = all(f is not None and f.isfinite().all() for f in pair)
            if self.judge.moments is None or not known or len(pair[0]) != len(pair[1]):
                continue
            rng = torch.Generator().manual_seed(0)
            drawn = [torch.randint(len(pair[0]), (len(pair[0]),), generator=rng) for _ in range(30)]
            here, *again = (self._change(*(f if rows is None else f[rows] for f in pair)) for rows in (None, *drawn))
            found.append(
                {
                    "claim": claim,
                    "published": published,
                    "here": here,
                    "deviation": statistics.stdev(again),
                    "images": len(pair[0]),
                }
            )
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

        def pack(part: Path) -> None:
            with zipfile.ZipFile(part, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as file:
                about = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
                np.lib.format.write_array_header_1_0(file, about)
                for latents in cell.parts("latents", self.images):
                    pictures = self.bench.pictures(latents).movedim(1, -1).mul(255).round().byte()
                    file.write(pictures.contiguous().numpy().tobytes())

        replace(cell.folder / "samples.npz", pack)

    def report(self) -> dict:
        """Everything measured so far, also written as results.json."""
        results = {name: result for name in self.rows if (result := self.result(name))}
        made = sorted(set().union(*(self.cell(name).made() for name in results)))
        report = {**Cell(self.folder).notes["identity"], "made": made, "rows": results, "claims": self.claims()}
        write(self.folder / "results.json", json.dumps(report, indent=1) + "\n")
        return report
