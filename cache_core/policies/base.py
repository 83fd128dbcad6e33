"""What every caching policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...errors import SettingError, shown
from ..corrector import Corrector
from ..knobs import Knob
from ..sites import MODEL, STACK, Action, Feature, Schedule, Site, Step

LEVELS = ("branch", "stack", "model")

MOST_STEPS = 10_000
"""Of a sampler: the host's own limit."""


class Decline(Exception):
    """Raised by `reuse` or `select` when a policy finds in mid-run that it cannot serve it: one sentence, with the remedy."""


def check_steps(policy: str, computed: tuple[int, ...], total: int | None) -> None:
    """Raise SettingError unless the listed steps of a policy rise from 0 and are among `total`; None for any number."""
    if computed and (computed[0] != 0 or list(computed) != sorted(set(computed))):
        raise SettingError(f"{policy}: computed is {shown(computed)}; it must rise from 0, the step that begins")
    if computed and total is not None and computed[-1] >= total:
        raise SettingError(f"{policy}: step {computed[-1]} is computed, but there are {total} steps")


def check_total(policy: str, total: int) -> None:
    """Raise SettingError unless a policy belongs to a number of steps that a sampler may have; 0 stands for any."""
    if not 0 <= total <= MOST_STEPS:
        raise SettingError(f"{policy}: steps is {shown(total)}; whole numbers from 0 to {MOST_STEPS} are meant")


class Aside(Protocol):
    """What a prepared policy holds besides the features in the store, until the run ends."""

    @property
    def nbytes(self) -> int: ...

    def begun(self, step: int, site: str, like: Tensor) -> None:
        """Told of an output that a branch computed, in case that something is to be made ready for the next evaluations."""
        ...

    def expected(self, device: torch.device, dtype: torch.dtype) -> int:
        """Bytes that will be held of a run whose features are there and of this dtype."""
        ...

    def clear(self) -> None: ...


@dataclass(frozen=True)
class CachePolicy(ABC):
    """Decides what to do at a site. Frozen and pure: the same question gets the same answer, and changes nothing.

    `decide` sees no tensor, so that nothing waits for the device and a run can be told, counted and searched beforehand:
    a criterion on features is worked out in `prepared`, from a prior. What `reuse` and `select` make of tensors may depend on
    them, but not what is computed.

    `history` is how many past outputs `reuse` needs, `keeps_reused` whether its own results count among them; both may
    be properties of an instance. `level` says what the policy is asked about: "branch" for the residual branches of
    every block, "stack" for all blocks at once (STACK), "model" for the output of the whole network. `stack` asks it
    about STACK before the branches, too: where that is reused, no branch is asked about. `marks` names what is to be
    noted of the tokens while they are computed, for `select` to find in past[0].marks; None where it is not known.
    `changes` is what the trace calls an output that `reuse` did not leave as it was, one of `trace.KINDS`. `limit` is how many bytes may be
    kept at most, whatever was told beforehand; None for any. `aside` is what it holds itself, if it does. `corrects` says
    whether `corrector_for` may give anything, `scheduled` whether it computes where a sampler is not at the step that the
    schedule has there. `before` has the values of fields that records of earlier versions lack. `automatic` says whether a
    node that chooses by itself stands behind it.
    """

    history: ClassVar[int] = 1
    keeps_reused: ClassVar[bool] = False
    stack: ClassVar[bool] = False
    marks: ClassVar[str] = ""
    changes: ClassVar[str] = "corrected"
    limit: ClassVar[int | None] = None
    aside: ClassVar[Aside | None] = None
    corrects: ClassVar[bool] = False
    scheduled: ClassVar[bool] = False
    before: ClassVar[Mapping[str, object]] = MappingProxyType({})
    automatic: ClassVar[bool] = False
    level: str = field(default="branch", kw_only=True)

    def __post_init__(self):
        if self.level not in LEVELS:
            raise SettingError(
                f"{type(self).__name__}: level is {shown(self.level)}; choose one of {', '.join(LEVELS)}"
            )

    def serves(self, site: Site) -> bool:
        """Whether this policy is asked about a site at all."""
        if site == STACK:
            return self.stack or self.level == "stack"
        return self.level == ("model" if site == MODEL else "branch")

    def keeps(self, site: Site) -> bool:
        """Whether outputs of a site that is served are kept; where they are not, it is always computed."""
        return True

    @abstractmethod
    def decide(self, step: Step, site: Site) -> Action:
        """Asked only where there is something to reuse; anything else is computed."""

    def reuse(self, step: Step, site: Site, past: list[Feature]) -> Tensor:
        """The output to use instead of computing; `past` is newest first and never empty. Must not write to it."""
        return past[0].value

    def corrector_for(self, schedule: Schedule) -> Corrector | None:
        """What makes good, in the guided output of a step, what was reused before; asked when prepared."""
        return None

    def select(self, step: Step, site: Site, x: Tensor, past: list[Feature]) -> Tensor:
        """Which tokens to compute after PARTIAL: indices (B, K) into the branch's input x (B, N, D)."""
        raise NotImplementedError(f"{type(self).__name__} answered PARTIAL but does not select tokens")

    def prepared(self, schedule: Schedule) -> CachePolicy:
        """Asked once before sampling: this policy with everything worked out that the schedule decides."""
        return self

    def sized(self, schedule: Schedule) -> bool:
        """Whether it must know what every branch of such a run takes to keep and to compute; asked before it is prepared."""
        return self.limit is not None

    def remark(self, schedule: Schedule) -> str | None:
        """What the trace is to say where `prepared` gives another policy, or the settings will harm such a run; asked before it."""
        return None

    def objection(self, schedule: Schedule) -> str | None:
        """One sentence when this policy cannot serve such a run, which is then computed in full; asked when prepared."""
        return None

    def opened(self, schedule: Schedule) -> CachePolicy:
        """The same policy with the fields of its knobs written out, as they are in such a run."""
        return self

    def knobs(self, schedule: Schedule) -> tuple[Knob, ...]:
        """What a search may set, on a policy that was opened, the most promising first; `priors.search` turns them."""
        return ()

    def cached(self, schedule: Schedule) -> tuple[int, ...]:
        """The steps at which it does not compute everything, as far as the sites are known; asked when opened."""
        served = [site for site in (*schedule.sites, STACK, MODEL) if self.serves(site)] or [MODEL]
        later = schedule.evaluations[1:]
        return tuple(s.index for s in later if any(self.decide(s, site) is not Action.COMPUTE for site in served))

    @abstractmethod
    def describe(self) -> str:
        """The policy and its settings in a few words, for titles and logs."""
