"""What was inspected as files: figures as PNG, tables as CSV, all of it as JSON. Texts only; the caller writes them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from ..cache_core.trace import RunTrace
from ..priors.prior import Prior
from ..priors.router import TABLE

DPI = 200
"""Of a figure as a file: twice as fine as on the canvas."""
STEPS = ("run", "policy", "step", "sigma", "seconds", "bytes", "computed", "error_estimated", "error_true")
BRANCHES = ("run", "policy", "step", "sigma", "block", "branch", "site", "kind", "error")


def png(figure: Figure) -> bytes:
    """The figure on its own paper."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor=figure.get_facecolor())
    return file.getvalue()


def steps_csv(runs: Sequence[RunTrace]) -> str:
    """A row per evaluation: seconds, bytes held by the cache, share computed, mean relative L2 errors."""
    rows = []
    for number, run in enumerate(runs):
        for step in run.as_dict()["steps"]:
            told = {"run": number, "policy": run.policy, "step": step["index"], **step}
            rows.append([told[name] for name in STEPS])
    return _csv(STEPS, rows)


def branches_csv(runs: Sequence[RunTrace]) -> str:
    """A row per evaluation and branch: what became of it, and its relative L2 error, estimated where it was computed."""
    rows = []
    for number, run in enumerate(runs):
        rows += [[number, run.policy, *(cell[name] for name in BRANCHES[2:])] for cell in _cells(run)]
    return _csv(BRANCHES, rows)


def prior_csv(prior: Prior) -> str:
    """A row per evaluation, branch and distance: the relative L2 error of reuse; and the gate, where there is a router."""
    names = ("step", "sigma", "site", "distance", "error", "gate")
    errors = [prior.reuse_error(gap + 1).tolist() for gap in range(len(prior.tables["difference"]))]
    gates = prior.tables[TABLE].tolist() if TABLE in prior.tables else None
    rows = [
        [t, sigma, site, gap, _known(table[t][s]), None if gates is None else _known(gates[t][s])]
        for t, sigma in enumerate(prior.tables["sigmas"].tolist())
        for s, site in enumerate(prior.sites)
        for gap, table in enumerate(errors, 1)
    ]
    return _csv(names, rows)


def plans_csv(prior: Prior) -> str:
    """A row per plan."""
    names = ("policy", "steps", "evaluations", "speedup", "error", "unplanned", "pictures", "computed")
    rows = [
        [p.policy, p.steps, p.evaluations, p.speedup, p.error, p.unplanned, p.pictures, " ".join(map(str, p.computed))]
        for p in prior.plans
    ]  # fmt: skip
    return _csv(names, rows)


def as_json(
    summary: str, runs: Sequence[RunTrace] = (), before: Sequence[RunTrace] = (), prior: Prior | None = None
) -> str:
    """All of it; what is not known is null."""
    told: dict = {"summary": summary}
    for name, some in (("runs", runs), ("before", before)):
        if some:
            told[name] = [run.as_dict() | {"branches": list(_cells(run))} for run in some]
    if prior is not None:
        told["prior"] = _prior(prior)
    return json.dumps(_plain(told), indent=1, allow_nan=False) + "\n"


def _prior(prior: Prior) -> dict:
    gaps = range(1, len(prior.tables["difference"]) + 1)
    found = {
        "subject": vars(prior.subject),
        "sites": prior.sites,
        "pictures": prior.samples,
        "sigmas": prior.tables["sigmas"].tolist(),
        "reuse_error": {gap: prior.reuse_error(gap).tolist() for gap in gaps},
        "plans": [plan.as_dict() for plan in prior.plans],
    }
    return found | ({"gates": prior.tables[TABLE].tolist()} if TABLE in prior.tables else {})


def _cells(run: RunTrace) -> Iterable[dict]:
    sites, kinds, errors = run.kinds()
    sigmas = {m.step.index: m.step.sigma for m in run.moments}
    for t in range(len(kinds[0]) if sites else 0):
        for site, kind, error in zip(sites, kinds, errors, strict=True):
            if kind[t]:
                yield {
                    "step": t, "sigma": sigmas.get(t), "block": site.block, "branch": site.branch, "site": site.name,
                    "kind": kind[t], "error": _known(error[t]),
                }  # fmt: skip


def _known(value) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _plain(told):
    """JSON has no numbers that are not finite: null."""
    if isinstance(told, dict):
        return {name: _plain(value) for name, value in told.items()}
    if isinstance(told, (list, tuple)):
        return [_plain(value) for value in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told


def _csv(names: Sequence[str], rows: Iterable[Sequence]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return file.getvalue()
