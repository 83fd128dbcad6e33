"""ToCa: Accelerating Diffusion Transformers with Token-wise Feature Caching (arXiv 2410.05317)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import SettingError, shown
from ..knobs import Choice, Knob, choice
from ..sites import Action, Feature, Schedule, Site, Step
from .base import CachePolicy

SELECTIONS = {
    "random": "",
    "small values": "values",
    "large values": "values",
    "attention": "received",
    "entropy": "entropy",
}
"""How tokens are chosen -> what is noted of them for it."""


@dataclass(frozen=True)
class Preset:
    """What the authors chose for one model. A pair (a, b) means a + b * u.

    Of steps, u is the step's index over their number, the index counted as `counts` says; of layers, the position of
    the block, 0 to 1.
    """

    interval: int
    ratio: float  # of tokens to compute, before the factors below
    counts: str  # "down" to 0, or "up" from 0, which the type of a step depends on; "since" the last full step
    drift: tuple[float, float] = (1.0, 0.0)  # the interval is divided by this
    window: tuple[float, float] = (0.0, 0.0)  # of u, where the interval is 2
    warmup: int = 1  # full steps at the beginning
    steps: tuple[float, float] = (1.0, 0.0)
    layers: tuple[float, float] = (1.0, 0.0)
    branches: tuple[tuple[str, float], ...] = ()  # end of a branch's name, and the factor of its ratio
    staleness: float = 0.25
    cell: int = 1  # the best token of each cell x cell
    bonus: float = 0.0  # has its score raised by this share
    odd: str = "c"  # type of a step whose count is odd; that of the even ones is the other
    video: bool = False  # whether that model makes videos

    def index(self, step: int, total: int) -> int:
        return total - 1 - step if self.counts == "down" else step


def at(line: tuple[float, float], u: float) -> float:
    return line[0] + line[1] * u


DIT = Preset(
    interval=3, ratio=0.07, counts="down", drift=(1.4, -0.8), window=(0.2, 0.4), steps=(3.0, -4.0), layers=(0.8, 0.4),
    branches=(("mlp", 2.5),), cell=2, bonus=0.6,
)  # fmt: skip
PIXART = Preset(
    interval=3, ratio=0.3, counts="up", drift=(0.8, 0.4), steps=(1.9, -1.8), layers=(1.6, -1.2),
    branches=(("cross_attn", 0.6), ("mlp", 1.6)), cell=4, bonus=0.4,
)  # fmt: skip
FLUX = Preset(
    interval=4,
    ratio=0.1,
    counts="since",
    warmup=3,
    layers=(1.5, -56 / 27),
    branches=(("img_mlp", 0.4), ("txt_mlp", 0.4)),
)
PRESETS = {
    "dit": DIT,
    "dit, 250 steps": replace(DIT, interval=4, steps=(1.4, -0.8), layers=(1.8, -1.6)),
    "pixart": PIXART,
    "flux": FLUX,
}
"""From the authors' commands and code. The single-stream blocks of Flux, whose one branch holds attention, are reused, where
the authors compute the MLP of some tokens of them."""

AUTO = "auto"
"""In place of a preset: that of the model which is most alike the one that is sampled."""


def fitting(preset: Preset, schedule: Schedule) -> bool:
    """Whether the network of a run has every branch of which a preset computes some tokens."""
    names = {site.branch for site in schedule.sites}
    return all(any(name.endswith(end) for name in names) for end, _ in preset.branches)


def alike(presets: Mapping[str, Preset], schedule: Schedule) -> str:
    """The name of the preset of the model that is most alike that of a run: of those that fit, the one of most branches.

    Of two such the one for videos where the run is of one, else the other; the first where none fits.
    """

    def likeness(name: str) -> tuple[int, bool]:
        preset = presets[name]
        fits = fitting(preset, schedule)
        return fits * len(preset.branches), fits and preset.video == (schedule.frames > 1)

    return max(presets, key=likeness)


OPEN = {
    "ratio": (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0),
    "staleness": (0.0, 0.1, 0.25, 0.5, 1.0),
    "bonus": (0.0, 0.2, 0.4, 0.6, 0.8, 1.2),
}
"""What a policy may replace of a preset, and what a search tries beside the preset's own."""
INTERVALS = tuple(range(2, 13))


@lru_cache(maxsize=64)
def plan(preset: Preset, total: int, aggressive: bool = False, faithful: bool = False) -> tuple[str, ...]:
    """The type of every step: F full, c conservative (some tokens computed), a aggressive (all blocks skipped).

    The interval is set anew at every full step, and a step is full where its index is a multiple of it. faithful: as
    the published DiT code runs, where the first block of a full step sets the interval by which the other blocks then
    judge: "F0+c" and "F0+a" are steps that only the first block takes for full.
    """
    plain = preset.ratio == 0 and not aggressive  # then the authors' code is FORA
    found: list[str] = []
    interval, last = preset.interval, 0
    for step in range(total):
        index = preset.index(step, total)
        count = step - last if preset.counts == "since" else index
        warm = step < (1 if plain else preset.warmup)
        if not (warm or count % interval == 0):
            found.append(_cached(preset, count % interval, aggressive))
            continue
        last = step
        if preset.counts != "since" and not plain:
            low, high = (int(share * total) for share in preset.window)
            drifted = round(preset.interval / at(preset.drift, index / total))
            interval = 2 if low <= index < high else max(drifted, 1)
        hiccup = faithful and not warm and count % interval
        found.append(f"F0+{_cached(preset, count % interval, aggressive)}" if hiccup else "F")
    return tuple(found)


def _cached(preset: Preset, count: int, aggressive: bool) -> str:
    if not aggressive:
        return "c"
    return preset.odd if count % 2 else {"a": "c", "c": "a"}[preset.odd]


@dataclass(frozen=True)
class ToCa(CachePolicy):
    """Between full steps, reuse attention, and compute the MLP (PixArt: and cross-attention) of some tokens anew.

    preset: the authors' constants for one model; "auto" takes those for the model that is most alike that of a run, and the
    first until then. interval and ratio replace the preset's. selection says which tokens: "random" draws the same for all rows of a
    branch at a step; "small values" and "large values" go by the norm of the value vectors, "attention" by the
    attention received (both ToCa's s1 and these as they were at the last full step), "entropy" by that of the attention
    to the text (s2), as it was then, too, where the authors enter the rows of what was computed since. Each row then chooses for itself. Tokens passed by become likelier (s3), the best of each cell of
    a square picture too (s4). What an architecture does not tell is replaced by random. Attention is never computed
    for some tokens alone.

    faithful: the step types as the published DiT code executes them, and the sign of its small values, under which the
    bonus is a penalty. steps: the types, one per step, in place of the preset's schedule. bonus and staleness replace
    the preset's where they are not negative.
    """

    preset: str = AUTO
    interval: int = 0
    ratio: float = -1.0
    selection: str = "random"
    faithful: bool = False
    steps: tuple[str, ...] = field(default=(), kw_only=True)
    bonus: float = field(default=-1.0, kw_only=True)
    staleness: float = field(default=-1.0, kw_only=True)
    settings: Preset = field(init=False, repr=False, compare=False)  # the preset with what this policy replaces in it

    presets: ClassVar[dict[str, Preset]] = PRESETS
    aggressive: ClassVar[bool] = False
    before: ClassVar[Mapping[str, object]] = MappingProxyType({"preset": "dit"})

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.preset not in (AUTO, *self.presets):
            choices = ", ".join((AUTO, *self.presets))
            raise SettingError(f"{name}: preset is {shown(self.preset)}; choose one of {choices}")
        if self.selection not in SELECTIONS:
            raise SettingError(f"{name}: selection is {shown(self.selection)}; choose one of {', '.join(SELECTIONS)}")
        if self.interval < 0:
            raise SettingError(
                f"{name}: interval is {self.interval}; use 1 (no caching) or more, or 0 for the preset's"
            )
        if not self.ratio <= 1:
            raise SettingError(
                f"{name}: ratio is {self.ratio}; it is a share from 0 to 1, or negative for the preset's"
            )
        if not (math.isfinite(self.bonus) and math.isfinite(self.staleness)):
            raise SettingError(
                f"{name}: bonus is {self.bonus} and staleness {self.staleness}; finite numbers are meant, or negative ones "
                "for the preset's"
            )
        if wrong := [s for s in self.steps if s not in ("F", "c", "a", "F0+c", "F0+a")]:
            raise SettingError(f"{name}: a step is {shown(wrong[0])}; there are F, c, a, F0+c and F0+a")
        preset = self.presets[next(iter(self.presets)) if self.preset == AUTO else self.preset]
        shares = {name: getattr(self, name) for name in OPEN if getattr(self, name) >= 0}
        settings = replace(preset, interval=self.interval or preset.interval, **shares)
        object.__setattr__(self, "settings", settings)

    @property
    def marks(self) -> str:
        return SELECTIONS[self.selection]

    def suited(self, schedule: Schedule) -> ToCa:
        """The same with the preset for such a run, where that was left open."""
        return replace(self, preset=alike(self.presets, schedule)) if self.preset == AUTO else self

    def prepared(self, schedule: Schedule) -> ToCa:
        ready = self.suited(schedule)
        return ready if ready.steps else replace(ready, steps=ready.planned(schedule.total))

    def remark(self, schedule: Schedule) -> str | None:
        """Which preset was taken, where that was left open, and why."""
        ready = self.prepared(schedule)
        if self.preset != AUTO or ready.objection(schedule):
            return None
        why = "no preset knows the branches of this model"
        if fitting(ready.settings, schedule):
            known = " and ".join(end for end, _ in ready.settings.branches)
            why = f"of all presets it knows most branches of this model ({known}){', and is for videos' * ready.settings.video}"
        return f"{self.describe()} chose {ready.describe()}: {why}."

    def planned(self, total: int) -> tuple[str, ...]:
        return plan(self.settings, total, self.aggressive, self.faithful)

    def kind(self, step: Step) -> str:
        """The type of this step."""
        steps = self.steps or self.planned(step.total)
        return "F" if step.index == 0 else steps[min(step.position, len(steps) - 1)]

    def decide(self, step: Step, site: Site) -> Action:
        kind = self.kind(step)
        if kind == "F" or (kind.startswith("F0") and site.block == 0):
            return Action.COMPUTE
        some = kind.endswith("c") and self._weight(site) > 0  # where it computes none, all are passed by once more
        return Action.PARTIAL if some else Action.REUSE

    def share(self, step: Step, site: Site) -> float:
        """The share of tokens of a branch that a conservative step computes."""
        s = self.settings
        u = s.index(step.position, step.total) / step.total
        return min(max(at(s.steps, u), 0.0) * self._weight(site), 1.0)

    def _weight(self, site: Site) -> float:
        """What of that share does not depend on the step."""
        s = self.settings
        factor = next((f for end, f in s.branches if site.branch.endswith(end)), 0.0)
        layer = site.block / max(site.depth - 1, 1)
        return max(s.ratio, 0.0) * max(at(s.layers, layer), 0.0) * factor

    def select(self, step: Step, site: Site, x: Tensor, past: list[Feature]) -> Tensor:
        """(B, K) indices of the tokens with the highest scores."""
        rows, tokens = x.shape[:2]
        count = int(round(self.share(step, site) * tokens, 4))  # 24 but for rounding is 24
        if count == 0:
            return torch.empty(rows, 0, dtype=torch.long, device=x.device)
        score = self._score(step, site, x, past[0].marks)
        if past[0].age is not None:
            score = score + self.settings.staleness / self.settings.interval * past[0].age
        if not site.branch.startswith("txt_"):
            score = spread(score, self.settings.cell, self.settings.bonus)
        return score.topk(count).indices.expand(rows, -1)

    def _score(self, step: Step, site: Site, x: Tensor, marks: Tensor | None) -> Tensor:
        """(B, N), or (1, N) where all rows share it."""
        if marks is None:
            return drawn(step, site, x.shape[1]).to(x.device, non_blocking=x.is_cuda)
        if self.selection == "small values":
            marks = 1 - marks if self.faithful else marks.amax(1, keepdim=True) - marks
        if self.selection == "entropy":
            marks = 1 + marks
        return marks / marks.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def opened(self, schedule: Schedule) -> ToCa:
        ready = self.suited(schedule)
        s = ready.settings
        return replace(ready, interval=s.interval, **{name: getattr(s, name) for name in OPEN})

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        """A selection that needs attention maps is offered only to one that had one."""
        interval = () if self.steps else (choice("interval", INTERVALS, self.interval),)
        cheap = tuple(name for name, marks in SELECTIONS.items() if marks in ("", "values"))
        selection = Choice("selection", tuple(dict.fromkeys((*cheap, self.selection))))
        ratio, *others = (choice(name, options, getattr(self, name)) for name, options in OPEN.items())
        return (ratio, *interval, selection, *others)

    def objection(self, schedule: Schedule) -> str | None:
        total = schedule.total
        if total < 3 and self.settings.interval > 1:
            return f"a run of {total} step{'s'[: total > 1]} leaves nothing to reuse"
        if self.steps and len(self.steps) != total:
            return f"its {len(self.steps)} step types are for as many steps, and the sampler makes {total}"
        return None

    def describe(self) -> str:
        s, faithful = self.settings, ", faithful" if self.faithful else ""
        known = self.preset != AUTO
        interval = f" N={s.interval}" if known or self.interval else ""
        ratio = f" r={s.ratio:g}" if known or self.ratio >= 0 else ""
        return f"{type(self).__name__}{interval}{ratio} ({self.preset}, {self.selection}{faithful})"


def drawn(step: Step, site: Site, tokens: int) -> Tensor:
    """(1, N) random scores, alike on every device."""
    seed = zlib.crc32(f"{site.name} at {step.index}".encode())
    return torch.rand(1, tokens, generator=torch.Generator().manual_seed(seed))


def spread(score: Tensor, cell: int, bonus: float) -> Tensor:
    """Scores (B, N) of a square of tokens, the highest in every cell x cell raised; others stay as they are."""
    side = math.isqrt(score.shape[1])
    if bonus == 0 or side**2 != score.shape[1] or side % cell:
        return score
    grid = (side // cell, cell, side // cell, cell)
    cells = score.unflatten(1, grid).transpose(2, 3)  # B h w cell cell
    best = cells == cells.amax((-2, -1), keepdim=True)
    return torch.where(best, cells * (1 + bonus), cells).transpose(2, 3).flatten(1)
