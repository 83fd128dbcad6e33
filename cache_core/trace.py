"""Trace: what was done in each sampling run and what it cost, per evaluation and site; tables for plots."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .sites import STACK, Action, Site, Step


def human_bytes(count: float) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    if count >= 2**20:
        return f"{count / 2**20:.1f} MiB"
    return f"{count / 2**10:.0f} KiB"


KINDS = ("computed", "partial", "reused", "corrected", "forecast")
"""What can become of a branch at one evaluation: all of it computed, some tokens, or none."""


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


class Row(NamedTuple):
    """One decision. `error` is relative L2: on COMPUTE what reuse would have cost, on REUSE what it did cost."""

    step: int
    site: Site
    action: Action
    error: Tensor | float | None
    changed: str = ""  # "corrected" or "forecast" where the policy changed what it reused
    tokens: float = 0.0  # the share of tokens that PARTIAL computed

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return {Action.COMPUTE: "computed", Action.PARTIAL: "partial"}.get(self.action) or self.changed or "reused"

    @property
    def work(self) -> float:
        """The share of its tokens that were computed."""
        return 1.0 if self.action is Action.COMPUTE else self.tokens


class Moment(NamedTuple):
    """One evaluation of the denoiser, ended."""

    step: Step
    seconds: float
    nbytes: int  # held by the cache when it ended


class Clock:
    """Times evaluations: by events on CUDA, which wait for nothing; elsewhere by the wall clock, when the device is done."""

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self):
        if self.device.type != "cuda":
            if done := getattr(getattr(torch, self.device.type, None), "synchronize", None):
                done()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @staticmethod
    def seconds(begin, end) -> float:
        if isinstance(begin, float):
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1000


@dataclass
class RunTrace:
    """One sampling run. Everything is plain Python numbers once `finish` was called."""

    policy: str
    total: int
    origin: tuple[str, str] = ("", "")  # (prompt id, node id) of the sampler that ran
    recipe: str = ""  # what that node and all before it were given, as a digest; "" where it is not known
    about: str = ""  # sampler and shape, for titles
    measure: str = "off"
    store: str = "device"  # how features were kept
    automatic: bool = False  # whether PriorCache (auto) chose the policy: all there is to turn is its goal
    record: dict | None = None  # the policy as JSON types, with what was settled when the run began
    expected_bytes: int | None = None  # told before sampling
    rows: list[Row] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remark: str | None = None  # the one of them that tells of no mishap: what the policy had to say beforehand
    complete: bool = False
    _marks: list[tuple] = field(default_factory=list, repr=False)

    def finish(self, complete: bool) -> None:
        """Bring errors and times over from the device, all at once."""
        measured = [r for r in self.rows if isinstance(r.error, Tensor)]
        if measured:
            device = measured[0].error.device  # a host that splits conds over devices leaves errors on each
            values = iter(torch.stack([r.error.float().to(device) for r in measured]).cpu().tolist())
            self.rows = [r._replace(error=next(values)) if isinstance(r.error, Tensor) else r for r in self.rows]
        self.moments = [Moment(step, Clock.seconds(a, b), size) for step, a, b, size in self._marks]
        self._marks = []
        self.notes = list(dict.fromkeys(self.notes))  # every device's network says the same
        self.complete = complete

    @property
    def sites(self) -> list[Site]:
        """The sites that were visited, in order of first visit."""
        return list(dict.fromkeys(r.site for r in self.rows))

    @property
    def decisions(self) -> list[Row]:
        """What was decided of work that could be saved: where branches were looked at, STACK is no further work."""
        return [row for row in self.rows if row.site != STACK] or self.rows

    def shares(self) -> list[dict[str, float]]:
        """Of every evaluation, what part of its branches was of which of KINDS; what decided nothing was computed."""
        done: dict[int, Counter] = {}
        for row in self.decisions:
            done.setdefault(row.step, Counter())[row.kind] += 1
        found = []
        for moment in self.moments:
            counts = done.get(moment.step.index) or Counter({"computed": 1})
            found.append({kind: counts[kind] / counts.total() for kind in KINDS if counts[kind]})
        return found

    @property
    def evaluations(self) -> int:
        return len(self.moments)

    def table(self) -> tuple[list[Site], list[list[str]], list[list[float]]]:
        """(sites, action[site][step], error[site][step]); several streams are averaged, what is unknown is "" and nan."""
        return self._tabled(lambda row: row.action.value)

    def kinds(self) -> tuple[list[Site], list[list[str]], list[list[float]]]:
        """As `table`, with one of KINDS for every action."""
        return self._tabled(lambda row: row.kind)

    def _tabled(self, word: Callable[[Row], str]) -> tuple[list[Site], list[list[str]], list[list[float]]]:
        sites = self.sites
        row_of = {site: i for i, site in enumerate(sites)}
        columns = max([m.step.index + 1 for m in self.moments] + [r.step + 1 for r in self.rows], default=0)
        actions = [[""] * columns for _ in sites]
        errors: list[list[list[float]]] = [[[] for _ in range(columns)] for _ in sites]
        for row in self.rows:
            i = row_of[row.site]
            actions[i][row.step] = word(row)
            if row.error is not None:
                errors[i][row.step].append(row.error)
        return sites, actions, [[statistics.fmean(e) if e else float("nan") for e in line] for line in errors]

    def as_dict(self) -> dict:
        """Everything a report or a picture needs, as JSON types; per evaluation: errors over sites, None where unknown."""
        _, kinds, errors = self.kinds()
        steps = []
        for m, shares in zip(self.moments, self.shares(), strict=True):
            i = m.step.index
            known = [(kind[i], line[i]) for kind, line in zip(kinds, errors, strict=True) if math.isfinite(line[i])]
            values = [error for _, error in known]
            steps.append(
                {
                    "index": i,
                    "sigma": m.step.sigma,
                    "seconds": m.seconds,
                    "bytes": m.nbytes,
                    "computed": shares.get("computed", 0.0),
                    "kinds": shares,
                    "error_mean": statistics.fmean(values) if values else None,
                    "error_worst": max(values, default=None),
                    "error_estimated": _mean(error for kind, error in known if kind == "computed"),
                    "error_true": _mean(error for kind, error in known if kind != "computed"),
                }
            )
        return {
            "policy": self.policy,
            "about": self.about,
            "measure": self.measure,
            "complete": self.complete,
            "evaluations": self.evaluations,
            "computed_fraction": self.computed_fraction,
            "seconds": self.seconds,
            "speedup": self.speedup,
            "peak_bytes": self.peak_bytes,
            "expected_bytes": self.expected_bytes,
            "store": self.store,
            "notes": self.notes,
            "steps": steps,
        }

    @property
    def computed_fraction(self) -> float:
        """Share of all branches that were computed, tokens computed anew as what they are of all tokens; 1.0 when nothing was decided."""
        rows = self.decisions
        return sum(row.work for row in rows) / len(rows) if rows else 1.0

    def cost(self, flops: Mapping[str, float] | None = None) -> float:
        """What was computed of the branches, in full runs; tokens computed anew count as what they are of all tokens.

        flops: operations of every branch by name; branches that are not in it count alike. 1.0 when nothing was decided.
        """
        flops = flops or {}
        work: dict[int, list[tuple[float, float]]] = {moment.step.index: [] for moment in self.moments}
        for row in self.decisions:
            work.setdefault(row.step, []).append((flops.get(row.site.name, 1.0), row.work))
        shares = [sum(w * s for w, s in of) / sum(w for w, _ in of) if of else 1.0 for of in work.values()]
        return statistics.fmean(shares) if shares else 1.0

    def full_steps(self) -> list[int]:
        """Evaluations in which nothing was skipped."""
        skipped = {r.step for r in self.rows if r.action is not Action.COMPUTE}
        return [m.step.index for m in self.moments if m.step.index not in skipped]

    @property
    def seconds(self) -> float:
        return sum(m.seconds for m in self.moments)

    @property
    def speedup(self) -> float | None:
        """Against this run's own full evaluations (their median), never against a count of skipped ones.

        None where there are no full evaluations, or where reused branches were computed in shadow.
        The first evaluation warms the machine up and is left out of the median where others exist.
        """
        if self.measure == "truth":
            return None
        if self.full_seconds is None or not self.seconds:
            return None
        return self.full_seconds * self.evaluations / self.seconds

    @property
    def full_seconds(self) -> float | None:
        """Median of the full evaluations, as for `speedup`; None where there are none."""
        full = set(self.full_steps())
        times = [m.seconds for m in self.moments if m.step.index in full and m.step.index > 0]
        times = times or [m.seconds for m in self.moments if m.step.index in full]
        return statistics.median(times) if times else None

    @property
    def peak_bytes(self) -> int:
        return max((m.nbytes for m in self.moments), default=0)


class Trace:
    """The handle that travels beside a patched MODEL: the runs that were sampled with it.

    A node that runs again in a later prompt replaces its earlier runs; several runs of one prompt are kept apart.
    """

    limit = 64

    def __init__(self):
        self.runs: list[RunTrace] = []

    def add(self, run: RunTrace) -> None:
        self.renew(*run.origin)
        self.runs = [*self.runs, run][-self.limit :]

    def renew(self, prompt: str, node: str) -> None:
        """A node runs in this prompt: what it sampled in earlier ones is forgotten, also where nothing comes in its place."""
        self.runs = [r for r in self.runs if not (node and r.origin[1] == node and r.origin[0] != prompt)]

    def forget(self, runs: Iterable[RunTrace]) -> None:
        gone = set(map(id, runs))
        self.runs = [run for run in self.runs if id(run) not in gone]

    def of_nodes(self, nodes: set[str] | None) -> list[RunTrace]:
        """The runs sampled by these nodes, or by nodes expanded out of them; all runs where that is not known."""

        def among(node: str) -> bool:
            return not node or any(node == n or node.startswith((f"{n}.", f"{n}:")) for n in nodes)

        return [r for r in self.runs if nodes is None or among(r.origin[1])]
