"""Sentences about sampling runs: what happened, why and at what cost, what to try next."""

from __future__ import annotations

import re

import numpy as np

from ..cache_core.policies.forecast import SHORTEST
from ..cache_core.sites import MODEL, STACK
from ..cache_core.trace import KINDS, RunTrace, human_bytes
from ..priors.plan import Plan, followed
from ..priors.prior import Prior
from .panels import Grid

CALM, ROUGH = 0.1, 0.35
"""Mean error per branch below which there is room for more reuse, and above which pictures of the demo models change
visibly: FORA at N = 2 lies at .12 and changes their final latents by 4 %."""
TORN = 0.8
"""Mean error above which the pictures are ruined, however fast they came."""
LITTLE = 1.1
"""The speed-up below which there was hardly anything to gain."""
LEAST = 2
"""Computed steps of the fastest Forecast."""
FEW = SHORTEST - 1
"""Steps at which distilled models sample; so few leave hardly anything to reuse."""
KNOBS = {
    "FORA": ("a larger interval", "a smaller interval"),
    "ToCa": ("a larger interval", "a higher ratio"),
    "DuCa": ("a larger interval", "a higher ratio"),
    "L2C": ("a higher threshold", "a lower threshold"),
    "Forecast": ("a higher speedup", "a lower speedup"),
}
"""How a policy is told to skip more, and less."""
PLAN = ("a plan of fewer computed steps", "a plan of more computed steps")
CORRECTED = ("FORA", "L2C")
"""What GOC, EOC and Taylor can be put on."""
MILDEST = {"FORA": "more sampler steps"}
"""What is left to try where every second step is computed: the next smaller interval reuses nothing."""
PLACES = {MODEL.name: "the whole network", STACK.name: "all blocks"}
DECLINED = " computed everything"


def summary(run: RunTrace, prior: Prior | None = None) -> str:
    """Three sentences: what happened; what it cost, or why nothing was skipped; what to try next. With the prior of a plan
    that the run followed, one of what was promised.
    """
    if not run.moments:
        nothing = "no evaluation was seen" if run.complete else "the run was stopped before its first evaluation"
        return " ".join((f"{run.policy}, {run.about}: {nothing}.", *run.notes))
    plan = followed(prior, run.record) if prior is not None else None
    said = [happened(run), *([promised(plan)] if plan else []), explained(run), advice(run)]
    if not run.complete:
        said.insert(1, "The run was stopped before its end.")
    return " ".join(said)


def promised(plan: Plan) -> str:
    return (
        f"Its plan promised {plan.speedup:.2f}x in evaluations with a relative error of {plan.error:.3f} in the final latent, as "
        f"judged on {plan.pictures} other picture{'s' * (plan.pictures > 1)}; Compare measures it against the uncached run."
    )


def happened(run: RunTrace) -> str:
    steps, skipped = run.evaluations, run.evaluations - len(run.full_steps())
    where = {"device": "", "cpu": " of main memory", "8 bit": " in 8 bits"}[run.store]
    expected = "" if run.expected_bytes is None else f" ({human_bytes(run.expected_bytes)} expected)"
    full = f"all {steps} evaluations were computed in full" if steps > 1 else "its one evaluation was computed in full"
    done = f"{skipped} of {steps} evaluations skipped work ({_parts(run)})" if skipped else full
    return (
        f"{run.policy}, {run.about}: {done} in {run.seconds:.2f} s in the model{_speed(run)}, and the cache held "
        f"{human_bytes(run.peak_bytes)}{where} at most{expected}."
    )


def _parts(run: RunTrace) -> str:
    """Of all branches, the share of every kind but computed."""
    decisions = run.decisions
    shares = {kind: sum(row.kind == kind for row in decisions) / len(decisions) for kind in KINDS[1:]}
    found = [f"{share:.0%} {kind}" for kind, share in sorted(shares.items(), key=lambda x: -x[1]) if share]
    return f"of all that there was to compute, {', '.join(found)}"


def _speed(run: RunTrace) -> str:
    if run.measure == "truth":
        return ", computing in shadow included"
    if run.speedup is None:
        return ", with no full step to compare with"
    if not _skipped(run):
        return ""
    if abs(run.speedup - 1) < 0.005:
        return ", as fast as its steps in full"
    if run.speedup > 1:
        return f", {run.speedup:.2f}x faster than its steps in full"
    return f", {1 / run.speedup:.2f}x slower than its own full steps suggest"


def _skipped(run: RunTrace) -> bool:
    return run.computed_fraction < 1


def explained(run: RunTrace) -> str:
    """What reuse cost; or why nothing was reused."""
    reason = "; ".join(_reason(note) for note in run.notes)
    if not _skipped(run):
        smallest = _smallest(run)
        few = f"a run of {run.evaluations} steps leaves hardly anything to reuse" if run.evaluations <= FEW else ""
        why = [reason or "the policy asked for every evaluation in full", "" if reason else few, smallest]
        return f"Nothing was skipped: {'; '.join(part for part in why if part)}."
    table = Grid.of(run)
    true, estimated = table.true, table.estimated
    if np.isfinite(true).any():
        cost = f"Reuse cost a relative error of {_error(true)} on average, {_worst(table, true)}"
    elif np.isfinite(estimated).any():
        cost = f"At the computed steps, reuse would have cost a relative error of {_error(estimated)} on average, {_worst(table, estimated)}"  # fmt: skip
    else:
        cost = "What this cost was not measured"
    return f"{cost}{f'; {reason}' if reason else ''}."


def _declined(run: RunTrace) -> bool:
    """Whether the policy gave up, for all or for the rest of it."""
    return any(DECLINED in note for note in run.notes)


def _reason(note: str) -> str:
    """Why a policy declined, without saying again which."""
    before, found, after = note.rstrip(".").partition(DECLINED)
    if not found:
        return before
    since, _, reason = after.partition(": ")
    return f"everything was computed{since}, because {reason}" if since else reason


def _error(errors: np.ndarray) -> str:
    return f"{np.nanmean(errors):.3f}"


def _worst(table: Grid, errors: np.ndarray) -> str:
    i, step = np.unravel_index(np.nanargmax(errors), errors.shape)
    name = table.sites[i].name
    return f"{errors[i, step]:.3f} at worst ({PLACES.get(name, name)}, step {step})"


def _smallest(run: RunTrace) -> str:
    """The evaluation that moved least."""
    table = Grid.of(run)
    known = np.isfinite(table.errors).any(0)
    if not known.any():
        return ""
    mean = np.full(len(known), np.inf)
    mean[known] = np.nanmean(table.errors[:, known], 0)
    step = int(np.argmin(mean))
    return f"the smallest change from one evaluation to the next was {mean[step]:.3f}, at step {step}"


def advice(run: RunTrace) -> str:
    """The one thing to try next."""
    named, more, less = _turned(run)
    if not run.complete:
        return "Let it run to the end."
    if not _skipped(run):
        return _to_skip_at_all(run, named)
    table = Grid.of(run)
    errors = table.true if np.isfinite(table.true).any() else table.near
    if not np.isfinite(errors).any():
        if run.automatic:
            return "Try Compare for what it cost."
        return "Try measure = errors in Apply Cache to see where reuse is cheap, or truth for what it cost."
    mean, possible = np.nanmean(errors), 1 / max(run.computed_fraction, 1e-9)
    if mean > TORN:
        return f"Try {less}: what is reused has little in common with what would be computed."
    if possible < LITTLE and _declined(run):
        return f"Fix that first: {run.computed_fraction:.0%} of the work was still done."
    if possible < LITTLE:
        return f"Try {_bound(run) or more}: {run.computed_fraction:.0%} of the work was still done."
    if run.speedup is not None and run.speedup - 1 < 0.3 * (possible - 1):
        if _disturbed(run):
            return "Try it once more: some evaluations took over twice as long as a full one does, so something else ran beside them."
        larger = (
            "larger pictures or a larger batch" if run.automatic else "larger pictures, a larger batch or measure = off"
        )
        return (
            f"Try {larger}: up to {possible:.1f}x was possible and "
            f"{run.speedup:.2f}x came of it, because what is not cached, and caching itself, take time."
        )
    rough = _roughest(errors)
    if rough is not None and mean > CALM:
        begin, end, there, elsewhere = rough
        where = f"the error is {there:.2f} against {elsewhere:.2f} elsewhere"
        if named == "FORA" and not run.automatic:
            return f"Try start and end so that steps {begin} to {end} are computed, where {where}, or {less}."
        return f"Try {less}: at steps {begin} to {end} {where}."
    if mean > ROUGH:
        plain = run.policy.startswith(CORRECTED) and not run.automatic
        return f"Try {less}{', or GOC, EOC or Taylor Policy to correct what is reused' if plain else ''}."
    if mean < CALM and any(site.name != MODEL.name for site in table.sites):
        return f"Try {more}: there is room for it."
    if mean < CALM and named == "Forecast" and len(run.full_steps()) <= LEAST:
        return "Keep it if the picture holds: it computes two steps, the fewest possible."
    if mean < CALM:  # of the whole network, whose errors go into the picture as they are
        return f"Try {more} if the picture holds, and compare with fewer steps: Sweep draws both."
    if run.measure != "truth":
        measure = "Compare for what it cost" if run.automatic else "measure = truth in Apply Cache for the true error"
        return f"Try {measure}, and {more} if the picture holds."
    return f"Try {more} if the picture holds, {less} if it does not."


def _turned(run: RunTrace) -> tuple[str, str, str]:
    """The policy that decides, by name, and how its node is told to skip more, and less."""
    deciding = run.policy.rpartition(" on ")[2]
    named = deciding.split(" ")[0].rstrip(",")
    if run.automatic:  # its node has a speedup, whatever it chose
        return named, *KNOBS["Forecast"]
    if deciding.startswith("Forecast, "):  # with its steps listed
        return named, *PLAN
    more, less = KNOBS.get(named, ("a policy that skips more", "a policy that skips less"))
    return named, more, MILDEST.get(named, less) if f"{named} N=2 " in f"{run.policy} " else less


def _bound(run: RunTrace) -> str | None:
    """What keeps a policy from skipping as much as its own number says."""
    if run.automatic:
        return None
    if run.policy.startswith("Budget "):
        return "more megabytes in Memory Budget"
    return "a start and an end further apart" if re.search(r", \d+% to \d+%", run.policy) else None


def _disturbed(run: RunTrace) -> bool:
    """Whether single evaluations, the first one aside, took over twice as long as is usual for full ones."""
    return run.full_seconds is not None and any(m.seconds > 2 * run.full_seconds for m in run.moments[1:])


def _to_skip_at_all(run: RunTrace, named: str) -> str:
    if run.evaluations <= FEW:
        return "Try 20 steps or more, or leave this model uncached: it is fast because it has no steps to spare."
    if _declined(run):
        if run.automatic:
            return "Fix that first."
        other = "FORA Policy, which serves every sampler" if named == "Forecast" else "Forecast Policy, which needs no prior and no adapter"  # fmt: skip
        return f"Fix that first, or try {other}."
    return "Try speedup 2." if run.automatic else "Try FORA Policy with interval 2, or Forecast Policy with speedup 2."


def _roughest(errors: np.ndarray) -> tuple[int, int, float, float] | None:
    """First and last step of the third with the largest error, and both errors, where it is twice that elsewhere."""
    thirds = [part for part in np.array_split(np.arange(errors.shape[1]), 3) if len(part)]
    if len(thirds) < 3 or not all(np.isfinite(errors[:, part]).any() for part in thirds):
        return None
    means = [float(np.nanmean(errors[:, part])) for part in thirds]
    i = int(np.argmax(means))
    elsewhere = float(np.nanmean(np.delete(errors, thirds[i], 1)))
    return (int(thirds[i][0]), int(thirds[i][-1]), means[i], elsewhere) if means[i] > 2 * elsewhere else None
