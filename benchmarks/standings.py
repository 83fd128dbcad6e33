"""What `bench frontier` measured, as a page: docs/frontier.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

HOST = ("EasyCache", "LazyCache")
"""The host's own caches: they have thresholds in place of a number of evaluations."""
SPECTRUM = ("Spectrum", "Spectrum, at the output", "Spectrum, ComfyUI node")
PEERS = ("reuse", "Taylor 1", "Taylor 2", "Taylor 2, Spectrum's steps", *SPECTRUM, *HOST)
BASELINES = ("fewer steps, euler", "fewer steps, dpmpp_2m", "linear in sigma", *PEERS)
DEFAULT, PLAN = "Forecast (ours)", "Plan (ours)"
SAME = 1.001
"""The ratio of errors up to which two are those of one policy: machines round differently."""

THIRD = 1 / 3


@dataclass
class Point:
    """One method at one setting."""

    method: str
    evaluations: float
    error: float
    spread: float  # standard error of the mean over pairs
    psnr: float  # dB; infinite of the uncached one
    seconds: float


def between_thresholds(points: Iterable[Point], node: str, evaluations: float) -> Point | None:
    """A method that has no count of its own, on the line between its neighbouring points, in log error.

    Of several thresholds with as many evaluations, the best counts.
    """
    best: dict[float, Point] = {}
    for p in sorted((p for p in points if _is(p, node)), key=lambda p: (p.evaluations, p.error)):
        best.setdefault(p.evaluations, p)
    own = list(best.values())
    for a, b in pairwise(own):
        if a.evaluations <= evaluations <= b.evaluations:
            part = (evaluations - a.evaluations) / max(b.evaluations - a.evaluations, 1e-9)
            error = a.error ** (1 - part) * b.error**part
            spread, psnr, seconds = (
                (1 - part) * getattr(a, name) + part * getattr(b, name) for name in ("spread", "psnr", "seconds")
            )
            return Point(node, evaluations, error, spread, psnr, seconds)
    return None


@dataclass
class Setting:
    """All methods on one model, sampler, number of steps and cfg."""

    about: dict  # the arguments, and what it was measured on
    points: list[Point]

    @staticmethod
    def parsed(report: dict) -> Setting:
        points = [
            Point(**point | {"psnr": math.inf if point["psnr"] is None else point["psnr"]})
            for point in report["points"]
        ]
        return Setting(report["about"], points)

    @property
    def report(self) -> dict:
        """What `parsed` reads; JSON knows nothing infinite."""
        points = [asdict(p) | {"psnr": p.psnr if math.isfinite(p.psnr) else None} for p in self.points]
        return {"about": self.about, "points": points}

    @property
    def counts(self) -> list[int]:
        """Numbers of evaluations that methods are compared at, most first."""
        return sorted(self.about["counts"], reverse=True)

    @property
    def title(self) -> str:
        a = self.about
        return f"{a['model']}, {a['sampler']}, {a['steps']} steps, cfg {a['cfg']:g}"

    @property
    def machines(self) -> dict[str, str]:
        """Method -> what it was measured on; "" stands for those that were not measured anew."""
        first, *others = self.about["machine"].split("; ")
        return {"": first} | dict(part.split(" on ", 1) for part in others)

    @property
    def whole(self) -> bool:
        """Whether all was measured in one go, with nothing beside it: wall times can be told."""
        return self.about["alone"] and len(self.machines) == 1

    def point(self, method: str, count: int) -> Point | None:
        """A method with so many evaluations; one whose schedule cannot have as many, with one less."""
        if method in HOST:
            return between_thresholds(self.points, method, count)
        own = [p for p in self.points if p.method == method and count - 1.01 < p.evaluations < count + 0.01]
        return max(own, key=lambda p: p.evaluations) if own else None

    def at(self, method: str, count: int) -> float | None:
        """Its error."""
        point = self.point(method, count)
        return point and point.error

    def time(self, point: Point) -> float:
        """As a share of what all steps take."""
        return point.seconds / self.points[0].seconds

    def methods(self) -> list[str]:
        """Ours last."""
        others = (p.method for p in self.points[1:] if not p.method.startswith(HOST))
        return list(dict.fromkeys([*(m for m in (*BASELINES, *others) if m not in (DEFAULT, PLAN)), DEFAULT, PLAN]))

    def best(self, methods: Iterable[str], count: int) -> tuple[float, str]:
        """(error, method) of the best of these."""
        return min((error, name) for name in methods if (error := self.at(name, count)) is not None)

    def table(self) -> str:
        """Markdown: a row per method, a column per number of evaluations."""
        head = ", ".join(["error", "PSNR in dB"] + ["time"] * self.whole)
        lines = [
            f"| {head} | " + " | ".join(f"{c} of {self.about['steps']}" for c in self.counts) + " |",
            "|---" * (len(self.counts) + 1) + "|",
        ]
        for name in self.methods():
            points = [self.point(name, count) for count in self.counts]
            if any(points):
                between = ", between its thresholds" if name in HOST else ""
                lines.append(f"| {name}{between} | " + " | ".join(map(self._shown, points)) + " |")
        return "\n".join(lines)

    def _shown(self, point: Point | None) -> str:
        if point is None:
            return ""
        return f"{point.error:.4f}, {point.psnr:.1f}" + (f", {self.time(point):.2f}" if self.whole else "")


def _cells(settings: Iterable[Setting]) -> Iterator[tuple[Setting, int]]:
    yield from ((setting, count) for setting in settings for count in setting.counts)


def targets(settings: list[Setting]) -> list[str]:
    """What was aimed at, and how much of it holds."""
    default = [(s.at(DEFAULT, n) / s.best(BASELINES, n)[0], s, n) for s, n in _cells(settings)]
    planned = [
        (s.at(PLAN, n) / s.best(PEERS, n)[0], s.at(PLAN, n) / s.at(DEFAULT, n))
        for s, n in _cells(settings)
        if s.at(PLAN, n)
    ]
    lines = [
        f"* *The default is never worse than any baseline at equal evaluations*: so in {sum(r <= 1 for r, *_ in default)} of "
        f"{len(default)} places; its error is {_spread([r for r, *_ in default])} times that of the best baseline."
    ]
    worst = sorted((r, s.title, n) for r, s, n in default if r > 1)[-3:]
    if worst:
        lines[0] += " Worst: " + "; ".join(f"{r:.2f} at {n} in {title}" for r, title, n in reversed(worst)) + "."
    if planned:
        peers, own = zip(*planned, strict=True)
        lines += [
            f"* *Planned at most a third of the error of the best peer*: so in {sum(r <= THIRD for r in peers)} of {len(peers)} "
            f"places; {_spread(peers)} times.",
            f"* *Planned never worse than the default*: so in {sum(r <= SAME for r in own)} of {len(own)} places; {_spread(own)} "
            "times.",
        ]
    return lines


def _spread(values: Iterable[float]) -> str:
    values = sorted(values)
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def summary(settings: list[Setting]) -> str:
    """Markdown: a row per setting, all of as many counts; the best of all baselines, the default, the plan and its ratio to the best peer."""
    shares = [
        statistics.mode(share) for share in zip(*([_share(s, n) for n in s.counts] for s in settings), strict=True)
    ]
    lines = [
        "| | " + " | ".join(f"{share:g} of the evaluations" for share in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    for s in settings:
        cells = []
        for count in s.counts:
            error, name = s.best(BASELINES, count)
            default, plan = s.at(DEFAULT, count), s.at(PLAN, count)
            cells.append(f"{error:.3f} {name} / {_bold(default, default <= error)}")
            if plan is not None:
                cells[-1] += f" / {_bold(plan, plan <= SAME * default)} ({plan / s.best(PEERS, count)[0]:.2f})"
        lines.append(f"| {s.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(setting: Setting, count: int) -> float:
    return round(count / setting.about["steps"], 2)


def _bold(error: float, bold: bool) -> str:
    return f"**{error:.3f}**" if bold else f"{error:.3f}"


def clock(settings: list[Setting]) -> str:
    """Markdown: how much of the time that its evaluations should save a method does save, per model."""
    models = list(dict.fromkeys(s.about["model"] for s in settings))
    lines = ["| | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for method in settings[0].methods():
        cells = [_slower(method, [s for s in settings if s.about["model"] == model]) for model in models]
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is(point: Point, method: str) -> bool:
    """Whether a point is one of this method; those of the host's caches are named after their thresholds."""
    return point.method.startswith(method) if method in HOST else point.method == method


def _slower(method: str, settings: list[Setting]) -> str:
    """Share of the time over share of the evaluations."""
    points = [(s, p) for s in settings for p in s.points if _is(p, method) and p.evaluations]
    found = [s.time(p) / (p.evaluations / s.points[0].evaluations) for s, p in points]
    if len(found) < 2:
        return "".join(f"{ratio:.2f}" for ratio in found)
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def pictured(settings: list[Setting]) -> list[Setting]:
    """The middle number of steps with guidance, for every network and sampler, where times can be told."""
    return [s for s in settings if s.whole and s.about["steps"] == 28 and s.about["cfg"] != 1]


def _more(settings: list[Setting]) -> str:
    """Which schedulers make more steps than they are asked for."""
    made = {(s.about["scheduler"], s.about["steps"], round(s.points[0].evaluations)) for s in settings}
    told = [
        f"`{scheduler}` makes {n} steps where {steps} are asked for"
        for scheduler, steps, n in sorted(made)
        if n != steps
    ]
    return f" {'; '.join(told)}." if told else ""


def _large(settings: list[Setting]) -> str:
    """Whose pictures are larger than the network draws."""
    told = {(s.about["model"], s.about["times"], s.about["shift"]) for s in settings if "times" in s.about}
    return "".join(
        f" Pictures of {model} are {times} times as large, with shift {shift:g}: those whose {times} x {times} neighbours are alike, of "
        "which a network of small pictures says exactly what is true (`benchmarks/large.py`)."
        for model, times, shift in sorted(told)
    )


def page(settings: list[Setting], command: str) -> str:
    """docs/frontier.md."""
    machines = sorted({machine for s in settings for machine in s.machines.values()})
    pairs, calibration = (sorted({s.about[key] for s in settings}) for key in ("pairs", "calibration"))
    alone = [s for s in settings if s.whole]
    parts = [
        "# Error of the final latent against evaluations",
        f"Written by `python tools/dev.py bench frontier {command}`, on {'; '.join(machines)}. Relative L2 distance of the final "
        f"latent to that of all steps, mean of {_numbers(pairs)} pictures that nothing was planned with, of twelve prompts, each with a noise of its own; plans were "
        f"searched on {_numbers(calibration)} others, and judged by as many again. Evaluations are counted at the network's last block; every method "
        "skips whole ones, so that operations are saved in the same ratio. One whose schedule cannot have as many is told with one less."
        f"{_more(settings)}{_large(settings)} EasyCache gets a copy of its input: in 32 bits it otherwise adds to the sampler's own tensor. It and LazyCache "
        "decide once for all pictures of a batch, at the window that their nodes begin with, and without one where that leaves no "
        "room for so few evaluations. Spectrum forecasts the hidden state after the last block and mixes its regression and the line "
        "half and half, as it was released; a row has it forecast the output, as all others do, and one is a node for ComfyUI, which "
        "gives the regression a larger share the wider the window.",
        "## Targets",
        "\n".join(targets(settings)),
        "## In short",
        "Best of all baselines / our default, bold where it is at least as good / our plan, bold where it is at least as good as "
        "the default, and in brackets its error divided by that of the best cache (of all baselines without the ones that "
        "take fewer steps, and without our own linear forecast).",
        summary(settings),
    ]
    if alone:
        parts += [
            "## On the clock",
            "Wall time as a share of what all steps take, divided by the share of the evaluations: 1 where everything is saved "
            "that can be. Median over all points of a method (the middle half of them).",
            clock(alone),
        ]
    if pictured(settings):
        parts.append("![Error of the final latent against wall time](frontier.png)")
    parts += [
        "## All methods",
        "Mean relative L2 error and mean PSNR of the final latent, and wall time as a share of what all steps take"
        f"{'' if len(alone) == len(settings) else ', where all was measured in one go with nothing beside it'}; evaluations of the "
        "network on top.",
    ]
    parts += [f"### {s.title}\n\n{s.table()}" for s in settings]
    return "\n\n".join(parts)


def _numbers(values: Iterable[int]) -> str:
    return " or ".join(map(str, values))
