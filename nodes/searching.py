"""What searches by sampling have in common: one set of pictures under any policy, and what was tried on them before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import comfy.utils
import folder_paths
import torch

from ..cache_core.policies import CachePolicy, Full
from ..cache_core.sites import Schedule
from ..cache_core.trace import Trace
from ..priors.parts import as_one
from ..priors.search import Outcome, Search
from ..priors.trend import Trend
from ..priors.tried import Tried
from .attach import attach
from .memory import flops_of_sites, parts_of
from .prior import FOLDER
from .sampling import Sampling, seeds_from


class Sampler:
    """Samples one set of pictures under any policy: the batch once for each of so many seeds in a row."""

    def __init__(self, sampling: Sampling, model, seed: int, runs: int = 1):
        self.sampling, self.model, self.seeds = sampling, model, seeds_from(seed, runs)
        self.schedule = sampling.schedule(model)
        self.known: Tried | None = None
        self.parts = parts_of(sampling.guider(model), *sampling.shapes)
        self.flops = {site.name: flops for site, flops in flops_of_sites(model, self.parts).items()}

    def search(self, about, samplings: float = 0.0, judge: Search | None = None) -> Search:
        """A search of these pictures that knows what was tried about the same thing; with means, it shows its progress."""
        progress = comfy.utils.ProgressBar(1000) if samplings else None

        def simulate(policy: CachePolicy, pictures: int) -> Outcome:
            if progress:
                spent = search.spent + (judge.spent if judge else 0.0)
                progress.update_absolute(min(999, int(1000 * spent / samplings)))
            self.known.save()
            return self(policy, pictures)

        reference = self(Full()).latents
        self.known = remembered(reference, self.schedule, about)
        search = Search(simulate, reference, self.schedule, self.known.tried, self.known.fitted)
        return search

    def finished(self) -> None:
        """The search came to its end; what it tried stays known as long as ComfyUI runs."""
        if self.known is not None:
            self.known.finished()

    def __call__(self, policy: CachePolicy, pictures: int | None = None) -> Outcome:
        """Of the first few pictures, or of all."""
        trace, found, batch = Trace(), [], self.sampling.rows
        attached, left = attach(self.model, policy, trace), pictures or batch * len(self.seeds)
        for seed in self.seeds[: -(-left // batch)]:
            found.append(as_one(self.sampling(attached, seed, pictures=min(left, batch))))
            left -= batch
        return Outcome(torch.cat(found), trace.runs[-1].cost(self.flops))


_SEARCHES: dict[str, Tried] = {}
"""What searches of this session sampled so far: one that was stopped, or is to go further, goes on from there."""


def remembered(reference: torch.Tensor, schedule: Schedule, about) -> Tried:
    """What a search about the same thing has tried and fitted, in this session or in one that did not come to its end.

    Told by the pictures in full, which are sampled anew each time: whatever is changed about model, prompts, seed or
    settings changes them.
    """
    key = _digest((CODE, reference, schedule, about))
    if key not in _SEARCHES:
        while len(_SEARCHES) >= 8:
            del _SEARCHES[next(iter(_SEARCHES))]
        _SEARCHES[key] = Tried.opened(searches() / f"{key}.json")
    return _SEARCHES[key]


def _code() -> str:
    """Of all that samples and searches: what an earlier version tried is not what this one would find."""
    pack, parts = Path(__file__).resolve().parent.parent, ("cache_core", "models", "nodes", "priors")
    files = sorted(file for part in parts for file in (pack / part).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


CODE = _code()  # as it is loaded, which the files may no longer be when a search begins


def searches() -> Path:
    """Where unfinished ones are kept: beside the priors."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0]) / "searches"


def _digest(value) -> str:
    """Of tensors and plain values, nested or not, and of policies with what they are made of: the same in every session."""
    if isinstance(value, torch.Tensor):
        told = f"{tuple(value.shape)}".encode() + value.detach().float().cpu().numpy().tobytes()
    elif isinstance(value, (list, tuple)):
        told = "".join(map(_digest, value)).encode()
    elif isinstance(value, (set, frozenset)):  # whose order is another one in every session
        told = "".join(sorted(map(_digest, value))).encode()
    elif isinstance(value, dict):
        told = "".join(f"{name}{_digest(value[name])}" for name in sorted(value, key=str)).encode()
    elif isinstance(value, (CachePolicy, Trend)):
        told = f"{type(value).__name__}{_digest(vars(value))}".encode()
    else:
        told = repr(value).encode()
    return hashlib.sha256(told).hexdigest()
