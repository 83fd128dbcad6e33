"""Prior: named tables and what they belong to, as one safetensors file. The format is described in README.md."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from .. import archives
from ..cache_core.policies.base import MOST_STEPS
from ..errors import PriorCacheError, excerpt, shown
from .files import replace as replace_file
from .plan import Plan, merged

FORMAT = 1
MAX_BYTES = 8 * 2**30
LONGEST = 200  # characters of a name
LEAST = 0.01  # denoise
NUMBERS = (torch.float16, torch.float32, torch.float64)
NOT_NEGATIVE = {"power": "a mean of squares", "difference": "a mean of squares", "schedule": "made of noise levels"}


class PriorError(PriorCacheError):
    """A prior file that cannot be used, or a prior that does not fit; says what, and how to mend it."""


GIVEN = "given sigmas"
"""The scheduler of a subject whose noise levels a node gave."""


@dataclass(frozen=True)
class Subject:
    """What a prior belongs to. Two priors of one subject can be merged; a plan needs the same subject."""

    architecture: str  # class of the network, e.g. "DiT"
    geometry: str  # fingerprint of all parameter names and shapes
    prediction: str  # the host's model type: EPS, FLOW, ...
    sampler: str
    scheduler: str
    steps: int  # that were asked for
    cfg: float
    denoise: float = 1.0
    made: int = field(default=0, compare=False)  # steps that the scheduler made of them; 0: as many

    @property
    def total(self) -> int:
        """Steps of the sampler: a Schedule's total. ddim_uniform makes 31 of 30."""
        return self.made or self.steps

    def differences(self, other: Subject, only: Sequence[str] = ()) -> list[str]:
        """One phrase per field that differs: "steps: 50 here, 20 there"."""
        names = only or [f.name for f in fields(self) if f.compare]
        pairs = [(n, getattr(self, n), getattr(other, n)) for n in names]
        return [
            f"{n}: {a} in the prior, {b} here" if n != "geometry" else "geometry: other layers or widths"
            for n, a, b in pairs
            if a != b
        ]

    @property
    def settings(self) -> str:
        """How it was sampled, in words."""
        return f"{self.sampler}, {self.scheduler}, {self.steps} step{'s'[: self.steps != 1]}, cfg {self.cfg:g}"


MODEL_FIELDS = ("architecture", "geometry", "prediction")


@dataclass(frozen=True, eq=False)
class Prior:
    """Means over `samples` pictures; every table averages, so that runs merge. Compared by identity.

    tables: "sigmas" (T,); "power" (T, S) mean square of each branch output; "difference" (G, T, S) mean square of its
    change since g + 1 evaluations before (nan where there is no such past or no such branch); "gram/positive", "gram/negative" (T, T)
    mean product of the k-diffusion derivatives; "mean/<site>" (T, N, C) mean positive output, half precision where that reaches, optional;
    "trend/<site>" (K, N, C) its change since the evaluation before, at the K evaluations "trend_steps/<site>", optional;
    "router" (T, S) gates of L2C in [0, 1], nan where all is computed, optional; "schedule" (steps + 1,) noise levels of the
    sampler's steps and where they end, where they were given in place of a scheduler's name, optional. T counts evaluations, S sites.
    plans: what a search found for these sampler settings, fastest last.
    """

    subject: Subject
    sites: tuple[str, ...]
    samples: int
    tables: dict[str, Tensor] = field(repr=False)
    shape: tuple[int, ...] = ()  # of one latent, without batch
    seeds: tuple[int, ...] = ()
    plans: tuple[Plan, ...] = ()

    @property
    def evaluations(self) -> int:
        return len(self.tables["sigmas"])

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tables.values())

    def at(self, table: str, step: int, site: str) -> Tensor:
        """Entry of "power", "difference" (all gaps) or "mean" for one evaluation and site."""
        if table == "mean":
            return self._table(f"mean/{site}")[step]
        if site not in self.sites:
            example = f", such as {self.sites[0]!r}" if self.sites else ""
            raise PriorError(f"the prior knows no site {site!r}; it has {len(self.sites)}{example}")
        return self._table(table)[..., step, self.sites.index(site)]

    def reuse_error(self, gap: int = 1) -> Tensor:
        """Relative L2 error (T, S) of using the output of `gap` evaluations before; nan where there is none."""
        difference = self._table("difference")
        if not 1 <= gap <= len(difference):
            raise PriorError(
                f"gap {gap} was not measured: this prior has gaps 1 to {len(difference)}; calibrate with longest_gap {gap} or more"
            )
        return (difference[gap - 1].double() / self._table("power").double().clamp_min(1e-30)).sqrt()

    def output_error(self, gap: int = 1) -> Tensor:
        """The same (T,) of the network's own output, for the positive cond; nan where it was not there at every evaluation."""
        steps, gram = self.evaluations, self.tables.get("gram/positive")
        found = torch.full((steps,), float("nan"), dtype=torch.float64)
        if gram is not None and gap < steps:
            power = gram.double().diagonal()
            difference = power[gap:] + power[:-gap] - 2 * gram.double().diagonal(gap)
            found[gap:] = (difference.clamp_min(0) / power[gap:].clamp_min(1e-30)).sqrt()
        return found

    def _table(self, name: str) -> Tensor:
        if name not in self.tables:
            have = ", ".join(sorted({t.split("/")[0] for t in self.tables}))
            raise PriorError(f"the prior has no table {name!r}, only: {have}. Calibrate again with it switched on")
        return self.tables[name]

    @property
    def schedule(self) -> tuple[float, ...]:
        """Noise levels (steps + 1,) that were given; none where the scheduler has a name."""
        return tuple(self._table("schedule").tolist()) if self.subject.scheduler == GIVEN else ()

    @property
    def measured(self) -> bool:
        """Whether any branch was; a router alone comes without."""
        return bool(self.tables["power"].isfinite().any())

    def need_branches(self) -> None:
        """Raise PriorError where none was measured."""
        if not self.measured:
            raise PriorError("the prior tells of no branches; calibrate with scope set to 'branches'")

    def matches(self, subject: Subject, only: Sequence[str] = MODEL_FIELDS) -> None:
        """Raise PriorError, naming every difference, unless the prior belongs to `subject`."""
        if not (differences := self.subject.differences(subject, only)):
            return
        if any(told.startswith(MODEL_FIELDS) for told in differences):
            raise PriorError(
                f"the prior does not fit this model ({'; '.join(differences)}). "
                "Calibrate this model with the Calibrate node, or load the prior that was made with it"
            )
        raise PriorError(
            f"the prior was made with other settings ({'; '.join(differences)}). Set those of the prior, with its sigmas connected "
            "where it was made with such, or calibrate with these"
        )

    def follows(self, sigmas: Sequence[float]) -> None:
        """Raise PriorError where other noise levels than these were given, or where none were."""
        if not _close(torch.tensor(self.schedule), torch.tensor(sigmas)):
            raise PriorError(
                "the prior was made with other sigmas; connect those that it was made with, or calibrate with these"
            )

    def planned(self, plans: Sequence[Plan]) -> Prior:
        """This prior with other plans."""
        return replace(self, plans=tuple(plans))

    def save(self, path: str | Path) -> Path:
        """Write the file in one step: a crash leaves the old one, never half of a new one. Raises PriorError."""
        path = Path(path)
        _check_tables(self)
        if self.nbytes > MAX_BYTES:
            raise PriorError(
                f"its tables take {self.nbytes / 2**30:.1f} GiB, and no prior larger than {MAX_BYTES >> 30} GiB is read: calibrate "
                "without mean_features, or with the policy that EOC is to correct, for the steps that it reuses alone"
            )
        about = {
            "format": FORMAT,
            "subject": asdict(self.subject),
            "sites": self.sites,
            "samples": self.samples,
            "shape": self.shape,
            "seeds": self.seeds,
            "plans": [plan.as_dict() for plan in self.plans],
        }
        tables = {k: v.clone().contiguous() for k, v in self.tables.items()}
        replace_file(path, lambda part: save_file(tables, part, metadata={"priorcache": json.dumps(about)}))
        return path

    @staticmethod
    def load(path: str | Path, only: Sequence[str] | None = None) -> Prior:
        """Read and check a file. Raises PriorError whatever is wrong with it; nothing in it is executed.

        only: the tables to read, where others are large and not asked for.
        """
        path = Path(path)
        try:
            return _load(path, only)
        except PriorCacheError as error:
            raise PriorError(f"{path.name}: {error}") from None
        except (
            SafetensorError,
            OSError,
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            MemoryError,
            RecursionError,
        ) as error:
            raise PriorError(
                f"{path.name} is damaged or not a prior ({type(error).__name__}: {excerpt(error)})"
            ) from error

    @staticmethod
    def merge(priors: Iterable[Prior]) -> Prior:
        """One prior of all pictures of several, of which one at a time is needed.

        Raises PriorError when they do not belong together.
        """
        first, total, seeds, plans, sums, kinds = None, 0, [], [], {}, {}
        for prior in priors:
            first = first or prior
            first._belongs(prior)
            total += prior.samples
            seeds += prior.seeds
            plans.append(prior.plans)
            for name, table in prior.tables.items():
                if table.dtype in NUMBERS:
                    sums[name] = sums.get(name, 0) + table.double() * prior.samples
                    kinds[name] = torch.promote_types(kinds.get(name, table.dtype), table.dtype)
        if first is None:
            raise PriorError("nothing to merge: give at least one prior")
        tables = {
            name: (sums[name] / total).to(kinds[name]) if name in sums else table
            for name, table in first.tables.items()
        }
        return Prior(first.subject, first.sites, total, tables, first.shape, tuple(seeds), merged(plans))

    def repeats(self, other: Prior) -> bool:
        """Whether the two are the same but for their plans: means over the very same pictures."""
        alike = self.seeds == other.seeds and self.sites == other.sites and self.tables.keys() == other.tables.keys()
        known = bool(self.seeds) and alike
        return known and all(_same(table, other.tables[name]) for name, table in self.tables.items())

    def _belongs(self, other: Prior) -> None:
        """Raise PriorError, naming every difference, unless the two can be merged."""
        differences = self.subject.differences(other.subject)
        if self.sites != other.sites:
            differences.append("sites")
        if self.shape != other.shape:
            differences.append(f"shape: {self.shape} and {other.shape}")
        for name in sorted(self.tables.keys() | other.tables.keys()):
            tables = (self.tables.get(name), other.tables.get(name))
            if any(t is None for t in tables) or tables[0].shape != tables[1].shape:
                differences.append(f"table {name}")
            elif not all(t.dtype in NUMBERS for t in tables) and not _same(*tables):
                differences.append(f"table {name}, which holds {tables[0].dtype} and has no mean")
        for name in ("sigmas", "schedule") if not differences else ():
            if name in self.tables and not _close(self.tables[name], other.tables[name]):
                differences.append(name)
        if differences:
            raise PriorError(
                f"these priors cannot be merged: they differ in {'; '.join(differences)}; calibrate both alike"
            )


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two schedules have about the same noise levels."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tables are so bit by bit; those that are no numbers know no comparison of their own."""
    return save({"": a}) == save({"": b})


def _load(path: Path, only: Sequence[str] | None) -> Prior:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise PriorError(f"{size / 2**30:.1f} GiB is larger than any prior ({MAX_BYTES >> 30} GiB)")
    archives.check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("priorcache")
        if text is None:
            raise PriorError("a safetensors file, but not a prior. Priors are made by the Calibrate node")
        about = json.loads(text)
        version = about.get("format") if isinstance(about, dict) else None
        if version is True or version != FORMAT:
            raise PriorError(
                f"prior format {shown(version)} is unknown; this version reads {FORMAT}. Update PriorCache"
            )
        names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118 - not a dict
        tables = {name: file.get_tensor(name).clone() for name in names}  # what is not copied stays mapped to the file
    subject = {f.name: f for f in fields(Subject) if f.name in about["subject"]}
    allowed = {"str": str, "int": int, "float": (int, float)}
    for name, field_ in subject.items():
        value = about["subject"][name]
        if not isinstance(value, allowed[field_.type]) or isinstance(value, bool):
            raise PriorError(f"its subject's {name} is {shown(value)}, which is not a {field_.type}")
        if isinstance(value, str) and not _named(value):
            raise PriorError(
                f"its subject's {name} is {shown(value)}; at most {LONGEST} characters that can be drawn are allowed"
            )
        if isinstance(value, (int, float)) and not abs(value) < 2**63:
            raise PriorError(f"its subject's {name} is {shown(value)}; a finite number below 2**63 was expected")
    for name in ("sites", "shape", "seeds"):
        if not isinstance(about[name], list):
            raise PriorError(f"its {name} must be a list")
    sites = tuple(about["sites"])
    if not all(isinstance(s, str) and _named(s) for s in sites) or len(set(sites)) != len(sites):
        raise PriorError(
            f"its sites must be a list of different names of at most {LONGEST} characters that can be drawn"
        )
    prior = Prior(
        subject=Subject(**{name: about["subject"][name] for name in subject}),
        sites=sites,
        samples=_whole(about["samples"], "samples", 1),
        tables=tables,
        shape=tuple(_whole(n, "shape", 1) for n in about["shape"]),
        seeds=tuple(_whole(n, "seeds", 0) for n in about["seeds"]),
        plans=tuple(Plan.parsed(plan) for plan in about.get("plans", [])),
    )
    _check_tables(prior)
    return prior


def _named(text: str) -> bool:
    """Whether this can be a name: no longer, and nothing in it that cannot be drawn (control characters, halves of others)."""
    return len(text) <= LONGEST and not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def _whole(value, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**64:
        raise PriorError(f"its {name} holds {shown(value)}, which is not a whole number from {least} to below 2**64")
    return value


def _check_tables(prior: Prior) -> None:
    """Shapes agree with one another, numbers are finite. Tables of later versions pass unchecked and unused."""
    tables, known_sites = prior.tables, frozenset(prior.sites)
    for name in ("sigmas", "power", "difference"):
        if name not in tables:
            raise PriorError(f"table {shown(name)} is missing")
    if tables["sigmas"].ndim != 1 or tables["difference"].ndim != 3 or not len(tables["difference"]):
        raise PriorError("table sigmas must have 1 dimension and difference 3, with at least one gap")
    steps, sites = len(tables["sigmas"]), len(prior.sites)
    expected = {"power": (steps, sites), "difference": (len(tables["difference"]), steps, sites)}
    expected |= {n: (steps, steps) for n in tables if n.startswith("gram/")}
    expected |= {"router": (steps, sites)} if "router" in tables else {}
    if "schedule" in tables:
        expected["schedule"] = (prior.subject.total + 1,)
    for name, shape in expected.items():
        if tuple(tables[name].shape) != shape:
            raise PriorError(f"table {shown(name)} has shape {tuple(tables[name].shape)}; {shape} was expected")
    for name, table in tables.items():
        if name.startswith("mean/") and (table.ndim < 2 or len(table) != steps or name[5:] not in known_sites):
            raise PriorError(f"table {shown(name)} does not belong to a site of {steps} evaluations")
        if name.startswith(("trend/", "trend_steps/")):
            _check_trend(prior, name.partition("/")[2], known_sites)
        known = name in expected or name == "sigmas" or name.startswith(("mean/", "trend/"))
        if known and table.dtype not in NUMBERS:
            raise PriorError(f"table {shown(name)} holds {table.dtype}; float16, float32 and float64 are allowed")
        # nan is how a branch that was not there, or had no past, or has no gate, is written down
        gaps = name in ("power", "difference", "router")
        unknown = torch.isnan(table) if gaps else torch.zeros_like(table, dtype=torch.bool)
        if known and not (torch.isfinite(table) | unknown).all():
            raise PriorError(f"table {shown(name)} holds numbers that are not finite")
        if name in NOT_NEGATIVE and (table < 0).any():
            raise PriorError(f"table {shown(name)} holds negative numbers, but it is {NOT_NEGATIVE[name]}")
        if name == "router" and ((table < 0) | (table > 1)).any():
            raise PriorError("table 'router' holds numbers outside of 0 to 1, but they are gates")
    for name in ("steps", "made"):
        if not 0 <= (number := getattr(prior.subject, name)) <= MOST_STEPS:
            raise PriorError(f"its subject's {name} is {shown(number)}; whole numbers from 0 to {MOST_STEPS} are meant")
    if not math.isfinite(prior.subject.cfg):
        raise PriorError("its cfg is not a finite number")
    if not LEAST <= prior.subject.denoise <= 1:  # the host makes steps / denoise noise levels, one by one
        raise PriorError(f"its denoise is {shown(prior.subject.denoise)}; numbers from {LEAST} to 1 are meant")


def _check_trend(prior: Prior, site: str, sites: frozenset[str]) -> None:
    trend, steps = (prior.tables.get(f"{kind}/{site}") for kind in ("trend", "trend_steps"))
    if site not in sites or trend is None or steps is None:
        raise PriorError(
            f"tables {shown(f'trend/{site}')} and {shown(f'trend_steps/{site}')} belong together, and to one of its sites"
        )
    if steps.dtype != torch.int64 or steps.ndim != 1 or trend.ndim < 2 or len(trend) != len(steps):
        raise PriorError(
            f"table {shown(f'trend_steps/{site}')} must hold one whole number for each row of {shown(f'trend/{site}')}"
        )
    rows = steps.tolist()
    if rows != sorted(set(rows)) or not all(0 < t < prior.evaluations for t in rows):
        raise PriorError(f"table {shown(f'trend_steps/{site}')} must rise, from 1 to at most {prior.evaluations - 1}")
