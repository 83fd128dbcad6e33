"""Forecast: a skipped evaluation extrapolates the last computed ones, for the whole network at once.

Reuse, TaylorSeer (arXiv 2503.06923), MeanCache (arXiv 2601.19961), ChebBooster and others are members of this family:
they differ in the steps they compute, the coordinate along which they extrapolate, and the coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from ...errors import SettingError, shown
from ..corrector import DEGREES, SAMPLERS, Corrector
from ..extrapolation import (
    COORDINATES,
    axis,
    coefficients,
    ending,
    front_loaded,
    hastening,
    leaping,
    resampled,
    spread,
    widening,
)
from ..knobs import Choice, Knob, Numbers, Steps, choice
from ..samplers import multistep, noisy, several, told
from ..sites import Action, Feature, Schedule, Site, Step
from .base import CachePolicy, check_steps

FASTEST = 20.0
"""The largest speed-up."""

SHORTEST = 10
"""Steps of the shortest schedule that is forecast: models distilled to 8 or 9 steps have none to spare."""

FEWEST, FEWEST_MULTISTEP = 6, 10
"""Computed steps from which a parabola through three of them is closer than a line."""

CLOSE = 10
"""Computed steps from which no part of the parabola is held back, where the path is curved throughout."""

LINEAR = (1.0, 0.0)

CORRECTORS = ("auto", "off", *DEGREES)

FOLLOWS, FOLLOWS_FLOW = 0.0, 0.3
"""By how much of a displacement of x the denoised picture is taken to move, and that of a flow model."""

FEWEST_CORRECTED = 8
"""Computed steps from which a picture is near enough to its own path to be corrected towards it; a flow without guidance always is."""

DENSE = 0.3
"""The share of all steps that must be computed for it, too, of models of noise and velocity."""

FINE, FINE_MULTISTEP = 40, 28
"""Steps of a schedule so fine that more than the last step is worth computing where noise leaps at its end."""

CURVATURES = (0.5, 1.0)
"""What a search tries as the gain of the second difference before it gives each step one of its own."""


@dataclass(frozen=True)
class Forecast(CachePolicy):
    """Compute some evaluations; in between, extrapolate the derivative F = (x - denoised) / sigma of each cond:

        F(u) = F0 + g1 F[u0, u1] (u - u0) + g2 F[u0, u1, u2] (u - u0) (u - u1)

    with divided differences F[...] of the last computed F0, F1, F2 at u0, u1, u2. Gains g = (1, 0) are exact where F is
    linear in the coordinate u, (1, 1) where it is quadratic; (0, 0) is plain reuse.

    speedup: steps over computed steps; counts where `computed` is empty.
    computed: the steps to compute, from 0 = noisiest.
    coordinate: u, one of COORDINATES. order: 1 or 2 for gains (1, 0) or (1, curvature). "auto" and 0: as the prediction,
    the sampler and the number of computed steps suit, curvature with it.
    gains: (g1, g2) of every step, in place of order.
    corrector: the degree of the interpolation by which a computed step makes good what was forecast before it, one of
    CORRECTORS (`cache_core.corrector`); "auto": as prediction, sampler and number of computed steps suit. follows: by how much
    of a displacement of x it takes the denoised picture to move; below 0: as the prediction suits.
    sigmas, sampler, cfg: the noise levels (steps + 1,), sampler and scale of guidance that `computed` and `gains` were
    planned for; empty or 0: any. Where they are others, or guidance is where none was, as many steps are computed, but as
    without a plan, which was closer there in a third of the places at least; only on flow models and for more steps a plan
    is fitted in.
    """

    speedup: float = 2.0
    computed: tuple[int, ...] = ()
    coordinate: str = "auto"
    order: int = 0
    gains: tuple[tuple[float, float], ...] = ()
    sigmas: tuple[float, ...] = ()
    curvature: float = 1.0
    corrector: str = "auto"
    follows: float = -1.0
    sampler: str = ""
    cfg: float = 0.0
    changes: ClassVar[str] = "forecast"
    scheduled: ClassVar[bool] = True
    before: ClassVar[Mapping[str, object]] = MappingProxyType({"corrector": "off"})
    level: str = field(default="model", kw_only=True)
    places: tuple[float, ...] = field(default=(), repr=False)  # u of every step, once prepared

    def __post_init__(self):
        super().__post_init__()
        if not 1.0 <= self.speedup <= FASTEST:
            raise SettingError(
                f"Forecast: speedup is {self.speedup:g}; 1 (compute everything) to {FASTEST:g} are possible"
            )
        if self.coordinate not in COORDINATES:
            raise SettingError(
                f"Forecast: coordinate is {shown(self.coordinate)}; choose one of {', '.join(COORDINATES)}"
            )
        if self.order not in (0, 1, 2):
            raise SettingError(f"Forecast: order is {self.order}; 1 is linear, 2 quadratic, 0 chooses")
        if self.corrector not in CORRECTORS:
            raise SettingError(f"Forecast: corrector is {shown(self.corrector)}; choose one of {', '.join(CORRECTORS)}")
        if not self.follows <= 1.0:
            raise SettingError(f"Forecast: follows is {self.follows}; give 0 to 1, or less than 0 to let it choose")
        if not math.isfinite(self.curvature):
            raise SettingError(f"Forecast: curvature is {self.curvature}; give a finite number, such as 0.5")
        if not self.cfg >= 0:
            raise SettingError(f"Forecast: cfg is {self.cfg}; give the scale of guidance that it was planned for")
        if self.sigmas and not _plannable(self.sigmas):
            raise SettingError(
                f"Forecast: sigmas is {shown(self.sigmas)}; give positive noise levels, of which the last may be 0"
            )
        check_steps("Forecast", self.computed, len(self.sigmas) - 1 if self.sigmas else None)
        if self.sigmas and self.gains and len(self.gains) != len(self.sigmas) - 1:
            raise SettingError(
                f"Forecast: {len(self.gains)} gains for {len(self.sigmas) - 1} steps; give each step one"
            )

    @property
    def corrects(self) -> bool:
        return self.corrector != "off"

    @property
    def history(self) -> int:
        return 2 if self.order == 1 and not self.gains else 3

    def prepared(self, schedule: Schedule) -> Forecast:
        """This policy with its steps, coordinate and order settled for one schedule."""
        if self.misfit(schedule):
            return self._unplanned(schedule).prepared(schedule)
        computed, gains, sigmas = self.computed, self.gains, self.sigmas
        if self._of_other_steps(schedule):
            (computed, gains), sigmas = resampled(computed, gains, sigmas, schedule.sigmas), schedule.sigmas
        computed = computed or self._chosen(schedule)
        coordinate = self.coordinate
        if coordinate == "auto":
            coordinate = self._along(schedule, computed)
        order, curvature = self.order, self.curvature
        if not order:
            order = 1 if len(computed) < (FEWEST_MULTISTEP if multistep(schedule) else FEWEST) else 2
            curvature = 0.5 if schedule.flow or multistep(schedule) or len(computed) < CLOSE else 1.0
        settled = {
            "computed": computed,
            "gains": gains,
            "sigmas": sigmas or (schedule.sigmas if _plannable(schedule.sigmas) else ()),
            "sampler": schedule.sampler or self.sampler,
            "cfg": max(schedule.cfg, 0.0) or self.cfg,
            "coordinate": coordinate,
            "order": order,
            "curvature": curvature,
            "corrector": self._corrector(schedule, len(computed)),
            "follows": self.follows if self.follows >= 0 else FOLLOWS_FLOW if schedule.flow else FOLLOWS,
        }
        return replace(self, **settled, places=axis(schedule, coordinate))

    @staticmethod
    def _along(schedule: Schedule, computed: tuple[int, ...]) -> str:
        """The coordinate where none is asked for."""
        if not schedule.flow:
            return "step"
        # Log SNR begins far away: it serves the later steps only where the first ones are all computed.
        if computed[:4] == (0, 1, 2, 3):
            return "log snr"
        # Where sigma falls ever faster, what is skipped lies far beyond what is known; even steps are as good as sigma.
        return "step" if hastening(schedule.sigmas) else "sigma"

    def _chosen(self, schedule: Schedule) -> tuple[int, ...]:
        """Which steps are computed where none are listed."""
        total, count = schedule.total, self.count(schedule.total)
        if schedule.flow:
            # Of noise that is left to the later steps the last one takes most.
            return ending(front_loaded, total, count, int(hastening(schedule.sigmas) and 2 * count >= total))
        return ending(spread if multistep(schedule) else widening, total, count, self._last(schedule, count))

    @staticmethod
    def _last(schedule: Schedule, count: int) -> int:
        """How many steps at the end are all computed where noise leaps there, of models of noise and velocity."""
        leaps = leaping(schedule.sigmas)
        if not leaps or schedule.sampler not in SAMPLERS or not _dense(schedule, count):
            return 0
        if schedule.total < (FINE_MULTISTEP if multistep(schedule) else FINE):
            return int(leaps == 1)
        return max(leaps + multistep(schedule), 2)

    def _of_other_steps(self, schedule: Schedule) -> bool:
        """Whether the plan is for other steps over the same noise."""
        known = bool(self.sigmas and schedule.sigmas)
        return known and not same_noise(self.sigmas, schedule.sigmas) and _alike(self.sigmas, schedule.sigmas)

    def corrector_for(self, schedule: Schedule) -> Corrector | None:
        if self.corrector not in DEGREES:
            return None
        return Corrector(self.places, schedule.sigmas, DEGREES[self.corrector], schedule.sampler, self.follows)

    def _correctors(self, schedule: Schedule) -> tuple[str, ...]:
        """Those that can serve such a run; a search goes from one to its neighbours, and none is that of either."""
        known = schedule.sampler in SAMPLERS and _falling(schedule.sigmas)
        return ("linear", "off", "quadratic") if known else ("off",)

    def _corrector(self, schedule: Schedule, count: int) -> str:
        """The one of a run of which `count` steps are computed."""
        if self.corrector != "auto":
            return self.corrector if self.corrector in self._correctors(schedule) else "off"
        enough = "quadratic" if _dense(schedule, count) else "off"
        found = "linear" if schedule.flow and schedule.cfg == 1 else enough
        return found if count < schedule.total and found in self._correctors(schedule) else "off"

    def count(self, total: int) -> int:
        """How many of `total` steps are computed."""
        return len(self.computed) or max(min(2, total), min(total, math.floor(total / self.speedup + 1e-6)))

    def decide(self, step: Step, site: Site) -> Action:
        if step.index != step.position:  # a sampler that does not call once per step
            return Action.COMPUTE
        computed = self.computed or spread(step.total, self.count(step.total))
        return Action.COMPUTE if step.index in computed else Action.REUSE

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        """Summed in float32."""
        nodes = [self._place(feature.step) for feature in past]
        weights = coefficients(self._place(step), nodes, self.gains_at(step.index))
        out = past[0].value.float() * weights[0]
        for weight, feature in zip(weights[1:], past[1:], strict=True):
            if weight:
                out.add_(feature.value.float(), alpha=weight)
        return out.to(past[0].value.dtype)

    def _place(self, step: Step) -> float:
        return self.places[step.index] if step.index < len(self.places) else float(step.index)

    def gains_at(self, index: int) -> tuple[float, float]:
        if index < len(self.gains):
            return self.gains[index]
        return self._shape

    @property
    def _shape(self) -> tuple[float, float]:
        """(g1, g2) of every step that has none of its own."""
        return (1.0, self.curvature) if self.order == 2 else LINEAR

    def objection(self, schedule: Schedule) -> str | None:
        if schedule.total < SHORTEST:
            return f"a schedule of {schedule.total} step{'s'[: schedule.total > 1]} has none to spare; forecasting needs at least {SHORTEST}"
        name = told(schedule)
        if noisy(schedule):
            return f"the sampler {name} adds noise, which no past step foretells; use one without, such as euler or dpmpp_2m"
        if several(schedule):
            return f"the sampler {name} calls the model several times per step; use one that does not, such as euler or dpmpp_2m"
        if self.sigmas and not (same_noise(self.sigmas, schedule.sigmas) or _alike(self.sigmas, schedule.sigmas)):
            (a, b), (c, d) = _range(self.sigmas), _range(schedule.sigmas)
            return f"its plan is for noise from {a:.3g} to {b:.3g}, this run has {c:.3g} to {d:.3g}; plan with this run's settings"
        return None

    def misfit(self, schedule: Schedule) -> str:
        """How a run is another than its plan was made for, in words."""
        if not self.computed:
            return ""
        if found := self.other_sampling(schedule):
            return found
        finer = schedule.flow and len(self.sigmas) < len(schedule.sigmas)
        return "" if finer or not self._of_other_steps(schedule) else self.other_noise(schedule)

    def other_sampling(self, schedule: Schedule) -> str:
        """How sampler or guidance of a run are others than its plan was made for, in words."""
        if self.sampler and schedule.sampler and self.sampler != schedule.sampler:
            return f"the sampler {self.sampler}, and this run has {schedule.sampler}"
        if self.cfg and schedule.cfg and (self.cfg == 1) != (schedule.cfg == 1):
            return f"cfg {self.cfg:g}, and this run has {schedule.cfg:g}"
        if self.cfg == 1 and schedule.sampler and not schedule.cfg:
            return "cfg 1, and the guider of this run has guidance of its own"
        return ""

    def other_noise(self, schedule: Schedule) -> str:
        """How the noise of a run is another than its plan was made for, in words."""
        if same_noise(self.sigmas, schedule.sigmas):
            return ""
        if not self.sigmas:
            return "noise levels that it does not name"
        if len(self.sigmas) != len(schedule.sigmas):
            return (
                f"{len(self.sigmas) - 1} steps, and this run has {schedule.total if schedule.sigmas else 'other ones'}"
            )
        step = max(range(len(self.sigmas)), key=lambda i: abs(self.sigmas[i] - schedule.sigmas[i]))
        there, here = self.sigmas[step], schedule.sigmas[step]
        return f"other noise levels than this run has at its steps ({there:.3g} at step {step}, here {here:.3g})"

    def _unplanned(self, schedule: Schedule) -> Forecast:
        """The same share of computed steps without a plan."""
        planned = len(self.sigmas) - 1 if self.sigmas else schedule.total
        return Forecast(min(max(planned / len(self.computed), 1.0), FASTEST))

    def remark(self, schedule: Schedule) -> str | None:
        if self.prepared(schedule).objection(schedule):  # which says all there is to say
            return None
        if found := self.misfit(schedule):
            return (
                f"{self.describe()} was planned for {found}: the share of computed steps is kept, and which they are is chosen as "
                "without a plan. Calibrate and search with this run's settings."
            )
        if self._of_other_steps(schedule):
            return (
                f"{self.describe()} was planned for {len(self.sigmas) - 1} steps and is fitted into {schedule.total}, where it was "
                "not judged."
            )
        if self.corrector in DEGREES and schedule.sampler and self.corrector not in self._correctors(schedule):
            return (
                f"{self.describe()} corrects nothing with the sampler {schedule.sampler} and this schedule: it knows the steps of "
                f"{', '.join(SAMPLERS)} where noise falls throughout."
            )
        return None

    def opened(self, schedule: Schedule) -> Forecast:
        return self.prepared(schedule)

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        total = len(self.places)
        skipped = [t for t in range(total) if t not in self.computed]
        entries = tuple(
            (t, g) for g in (0, 1) for t in skipped if len(self.computed) > g + 1 and t > self.computed[g + 1]
        )
        gains = Numbers("gains", self._shape, entries)
        curved = (choice("curvature", CURVATURES, self.curvature),) if self.order == 2 else ()
        shapes = () if self.gains else (Choice("order", (1, 2)), *curved, Choice("coordinate", COORDINATES[1:]))
        offered = self._correctors(schedule)
        correctors = (Choice("corrector", offered),) if len(offered) > 1 else ()
        return (*correctors, *shapes, Steps("computed"), gains)

    def describe(self) -> str:
        if not self.computed:
            return f"Forecast {self.speedup:g}x"
        kind = "planned" if self.gains else ("", "linear", "quadratic")[self.order]
        along = "" if self.coordinate == "auto" else f"in {self.coordinate}"
        corrected = f"{self.corrector} corrector" if self.corrector in DEGREES else ""
        parts = (f"Forecast, {len(self.computed)} computed", f"{kind} {along}".strip(), corrected)
        return ", ".join(part for part in parts if part)


def _dense(schedule: Schedule, count: int) -> bool:
    """Whether a picture of which so many steps are computed is near enough to its own path."""
    return count >= FEWEST_CORRECTED and (schedule.flow or count >= DENSE * schedule.total)


def _plannable(sigmas: tuple[float, ...]) -> bool:
    """Whether these are noise levels of evaluations, and one where they end."""
    return len(sigmas) > 1 and min(sigmas[:-1]) > 0 <= sigmas[-1]


def _falling(sigmas: tuple[float, ...]) -> bool:
    """Whether every step of these noise levels takes some away."""
    return _plannable(sigmas) and all(after < before for before, after in pairwise(sigmas))


def same_noise(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two schedules have as many noise levels, and about the same ones."""
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b, strict=True))


def _range(sigmas: tuple[float, ...]) -> tuple[float, float]:
    """The noise at the first and at the last evaluation."""
    return sigmas[0], sigmas[-2]


def _alike(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two schedules go over the same noise, as step counts of one scheduler do.

    The first noise of some schedulers depends on the number of steps, but by less than two of them; the last is 0 wherever
    nothing is cut.
    """
    if not b or b[0] <= 0:
        return not b
    longest = max(x[0] / x[1] if x[1] else math.inf for x in (a, b))
    begins = max(a[0], b[0]) / min(a[0], b[0]) <= longest**2
    return begins and math.isclose(a[-1], b[-1], rel_tol=1e-3)
