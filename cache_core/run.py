"""CacheRun: one sampling call. The only place where policy, store and trace meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from typing import Protocol

import torch
from torch import Tensor

from ..errors import SettingError, shown
from .codecs import CODECS, Codec
from .policies.base import CachePolicy, Decline
from .samplers import STATEFUL, among
from .sites import MODEL, STACK, Action, Feature, Lane, Schedule, Site, Step, Streams
from .store import FeatureStore
from .trace import KINDS, Clock, Row, RunTrace

OutOfMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


class Observer(Protocol):
    """Watches what is computed; calibration is one.

    branches: whether it looks at them, too, beside the network's output. history: how many past outputs it wants to see.
    """

    branches: bool
    history: int

    def branch(self, step: Step, site: Site, streams: Streams, out: Tensor, past: list[Feature]) -> None: ...

    def model(self, step: Step, streams: Streams, derivative: Tensor) -> None: ...


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of any kind ran out; the CPU's allocator and some devices say so in words only."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (OutOfMemory, MemoryError)) or any(w in str(error).lower() for w in words)


FEW, NEW = 3, 0.25
"""Evaluations with passes of which nothing was there before, and their share of all passes, beyond which a run says so."""


def _stateful(schedule: Schedule) -> str | None:
    if not among(schedule, *STATEFUL):
        return None
    return f"with the sampler {schedule.sampler} the network remembers every call, and one that is skipped would be missing"


def _rising(schedule: Schedule) -> str | None:
    # Some schedules that rise have a 0 behind their end.
    last = next((sigma for sigma in reversed(schedule.sigmas) if sigma > 0), 0.0)
    if len(schedule.sigmas) < 2 or schedule.sigmas[0] >= last:
        return None
    return "the noise of this schedule rises, and every policy counts on less noise from step to step"


def relative_error(approximate: Tensor, exact: Tensor) -> Tensor:
    """|approximate - exact| / |exact| over everything, a float32 scalar on the device."""
    exact = exact.float()
    return (approximate.float() - exact).norm() / exact.norm().clamp_min(1e-12)


class CacheRun:
    """Holds everything mutable of one sampling call and dies with it.

    schedule: what is known beforehand; a number stands for so many steps of which nothing else is known.
    measure: "off" records decisions and times only; "errors" also measures, wherever a site is computed, the error
    that reuse would have had; "truth" computes reused branches too, in shadow, and measures what reuse cost.
    compiled: whether torch.compile takes part, be it out of sight of the network's own modules.
    """

    def __init__(
        self,
        policy: CachePolicy,
        schedule: Schedule | int,
        device: torch.device | str = "cpu",
        measure: str = "off",
        observers: Iterable[Observer] = (),
        trace: RunTrace | None = None,
        codec: Codec = CODECS["device"],
        compiled: bool = False,
    ):
        schedule = Schedule(schedule) if isinstance(schedule, int) else schedule
        never = _stateful(schedule) or _rising(schedule)
        if policy.changes not in KINDS:
            raise SettingError(
                f"{policy.describe()}: changes is {shown(policy.changes)}; a trace knows {', '.join(KINDS)}"
            )
        automatic, asked = policy.automatic, policy.describe()
        self.remark = None if never else policy.remark(schedule)
        self.policy = policy = policy.prepared(schedule)
        self.aside = policy.aside
        self.total, self.measure, self.compiled = schedule.total, measure, compiled
        self.observers = tuple(observers)
        self.trace = trace or RunTrace(policy.describe(), schedule.total)
        self.trace.measure, self.trace.store, self.trace.automatic = measure, codec.name, automatic
        if self.remark:
            self.trace.policy, self.trace.remark = policy.describe(), self.remark
            self.trace.notes.append(self.remark)
        wanted = [policy.history, int(measure != "off"), *(o.history for o in self.observers)]
        self.store = FeatureStore(max(wanted), codec, policy.limit)
        self.keeps = max(wanted) > 0 or bool(self.observers)  # whether computed outputs are looked at and kept
        self.declined: str | None = None
        self.checked: set[Hashable] = set()  # (network, kind of block) whose equation was compared with the host
        self._held: dict[str, bool] = {}  # whether outputs of a site are kept
        self.routes: dict = {}  # what `adapters.installed` prepared for each network of this run
        self.lock = RLock()  # a host that splits conds over devices has a thread for each
        self._clock = Clock(torch.device(device))
        self._step: Step | None = None
        self._upward = False
        self._visits: dict[tuple[int, Hashable], int] = {}
        self._lanes: set[Lane] = set()  # of this evaluation
        self._before: set[Lane] = set()  # of the one before
        self.scale: float | None = None  # of guidance, in this evaluation; for whoever samples to say
        self._scale_before: float | None = None
        self._strayed: list[int] = []  # evaluations at which the sampler was not where its schedule says
        self._asked: list[tuple[int, int]] = []  # behind the first evaluation: its lanes, and how many of them were new
        self.corrector = None
        self._guessed = False  # whether anything of the network's output was reused in this evaluation
        self._guides = False  # whether guidance has begun
        if objection := never or policy.objection(schedule):
            self.trace.policy = asked  # nothing came of what it chose
            self.decline(objection)
        else:
            self.corrector = policy.corrector_for(schedule)

    @property
    def evaluations(self) -> int:
        """How many were begun."""
        return 0 if self._step is None else self._step.index + 1

    @property
    def step(self) -> Step:
        if self._step is None:
            raise RuntimeError("CacheRun: asked for the step before the first evaluation; wrap calls in evaluation()")
        return self._step

    @property
    def wants_branches(self) -> bool:
        """Whether the blocks of the network concern this run at all."""
        return self._watches or (self.policy.level != "model" and self.policy.history > 0)

    @property
    def _watches(self) -> bool:
        """Whether branches are looked at, whatever the policy is asked about."""
        return any(o.branches for o in self.observers) or (self.measure != "off" and self.policy.history == 0)

    def wants(self, site: Site) -> bool:
        """Whether outputs of this site are looked at or kept."""
        return self.policy.serves(site) or (self._watches and site != STACK)

    def holds(self, site: Site) -> bool:
        """Whether outputs of this site are kept."""
        held = self._held.get(site.name)
        if held is None:
            held = self._held[site.name] = self.wants(site) and (self._watches or self.policy.keeps(site))
        return held

    def decline(self, reason: str) -> None:
        """Compute everything from here on; the first reason is kept."""
        with self.lock:
            if self.declined is None:
                self.declined = reason
                begun = self._step is not None and self._step.index > 0
                since = f" from evaluation {self._step.index} on" if begun else ""
                self.trace.notes.append(f"{self.policy.describe()} computed everything{since}: {reason}.")
                self.keeps = self.keeps and (self.measure != "off" or bool(self.observers))
                self._drop()

    @property
    def nbytes(self) -> int:
        """What is held by now."""
        held = [self.aside, self.corrector]
        return self.store.nbytes + sum(other.nbytes for other in held if other)

    def _drop(self) -> None:
        self.store.clear()
        for other in (self.aside, self.corrector):
            if other:
                other.clear()

    def forgo(self, reason: str) -> None:
        """Go on without the cache: decline, and keep nothing any more, not even for measuring."""
        with self.lock:
            self.decline(reason)
            self.keeps = False
            self._drop()

    def survives(self, error: BaseException, work: str = "keeping features") -> bool:
        """Whether sampling goes on after this error in the cache's own work: if memory ran out, without the cache.

        Observers want everything, so with them it does not.
        """
        if self.observers or not out_of_memory(error):
            return False
        less = (
            f"(store {self.store.codec.name!r} of Apply Cache; '8 bit' takes less, 'cpu' nearly none of the device's)"
        )
        if self.trace.automatic:
            less = "(FORA Policy with scope 'whole network' keeps a few latents only)"
        self.forgo(f"memory ran out while {work} {less}")
        return True

    @contextmanager
    def evaluation(self, sigma: float, progress: float) -> Iterator[Step]:
        """One call of the denoiser; ticks the clock."""
        index = self.evaluations
        # A sampler that goes back up in noise breaks every policy's assumption: that evaluation is computed.
        self._upward = self._step is not None and sigma > self._step.sigma * (1 + 1e-5)
        self._step = Step(index, self.total, min(max(progress, 0.0), 1.0), sigma)
        self._visits.clear()
        self._guessed = False
        if self.policy.scheduled and self._step.index != self._step.position and not self.declined:
            self._strayed.append(index)
        self._count_lanes()
        if self._before - self._lanes:  # a prompt's range that ended, a window that moved on
            self.store.only(self._lanes)
        self._before, self._lanes = self._lanes, set()
        self._scale_before = self.scale
        begin = self._clock.mark()
        yield self._step
        self.trace._marks.append((self._step, begin, self._clock.mark(), self.nbytes))

    def guided(self, x: Tensor, denoised: Tensor) -> Tensor:
        """What goes back to the sampler for the noisy x and the guided output of the evaluation that is under way."""
        if self.corrector is None or self.declined:
            return denoised
        step = self.step
        if step.index != step.position or not math.isclose(step.sigma, self.corrector.sigmas[step.index], rel_tol=1e-3):
            self.corrector = None
            if not self._strayed:  # which is told of at the end
                self.trace.notes.append(
                    f"{self.policy.describe()} corrected nothing from evaluation {step.index} on: the sampler leaves its schedule."
                )
            return denoised
        if self._lanes != self._before or self.scale != self._scale_before:  # another prompt, one more, other guidance
            self.corrector.clear()  # what was before says nothing of this one
        if not self._guides:  # asked no further: every answer is waited for
            self._guides = self.scale == 1 or not torch.equal(x, denoised)
            if not self._guides:  # guidance that begins with nothing (zero init)
                self.corrector.clear()
                return denoised
        try:
            return self.corrector(step.index, x, denoised, computed=not self._guessed)
        except (RuntimeError, MemoryError) as error:
            if not self.survives(error):
                raise
            return denoised

    @property
    def excess(self) -> Tensor | float:
        """By how much what last went back to the sampler is not the picture that the model tells of."""
        return self.corrector.excess if self.corrector else 0.0

    def next_forward(self, conds: Iterable[tuple[int, Hashable]], rows: int = 0) -> Forward:
        """The cache as one forward sees it, for rows of these (cond index, key) in batch order; all of them are so many."""
        streams = []
        for cond in conds:
            visit = self._visits[cond] = self._visits.get(cond, -1) + 1
            streams.append(Lane(visit, *cond))
        self._lanes.update(streams)
        self._succeed(streams)
        return Forward(self, tuple(streams), rows)

    def _succeed(self, lanes: list[Lane]) -> None:
        """Where one takes the place of another, as where the range of a ControlNet ends, both are not held at once."""
        new = [lane for lane in lanes if lane not in self._before]
        if not (new and self._before):
            return
        away: dict[Hashable, list[Lane]] = {}
        for lane in self._before - self._lanes:
            away.setdefault(lane.whose, []).append(lane)
        gone = {old[0] for lane in new if len(old := away.get(lane.whose, ())) == 1}  # of several, some may still come
        if gone:
            with self.lock:
                self.store.without(gone)

    def _count_lanes(self) -> None:
        if self._before:
            self._asked.append((len(self._lanes), len(self._lanes - self._before)))

    def _strays(self) -> str | None:
        """Where the sampler left its schedule, in words."""
        if not self._strayed:
            return None
        first, name = self._strayed[0], self.policy.describe()
        if len(self._strayed) == self.evaluations - first:
            return f"{name} computed everything from evaluation {first} on: the sampler leaves its schedule."
        strayed = f"{len(self._strayed)} evaluation{'s'[: len(self._strayed) > 1]}"
        return f"{name} computed {strayed} at which the sampler was not where its schedule says."

    def _moves(self) -> str | None:
        """That much was new at every evaluation, in words."""
        asked, new = (sum(counts) for counts in zip(*self._asked, strict=True)) if self._asked else (0, 0)
        often = sum(new > 0 for _, new in self._asked) > FEW and new > NEW * asked
        if self.declined or not self.policy.history or not often:
            return None
        return (
            f"{self.policy.describe()} found no past for {new} of {asked} passes through the model, and "
            "computed them: context windows that move from step to step (standard_static has such as stay), or conds that change."
        )

    def close(self, complete: bool) -> None:
        """Drop every tensor; the trace stays."""
        with self.lock:  # the thread of another device may still be at work when an interrupt ended this one's
            self._count_lanes()
            self.trace.notes += filter(None, (self._strays(), self._moves()))
            self.keeps = False
            self._drop()
            self.routes.clear()
            self.trace.finish(complete)


def _alone(method: Callable) -> Callable:
    """One thread at a time; what the network itself computes is called outside."""

    @wraps(method)
    def locked(self: Forward, *args, **kwargs):
        with self.run.lock:
            return method(self, *args, **kwargs)

    return locked


class Forward:
    """What an adapter talks to: the run, for the rows of one forward; 0 of them where their number is not known."""

    def __init__(self, run: CacheRun, streams: Streams, rows: int = 0):
        self.run, self.streams, self.rows, self.step = run, streams, rows, run.step
        self._actions: dict[str, Action] = {}
        self._marks: dict[str, Tensor] = {}
        self._changed: set[str] = set()  # sites whose past the policy did not take as it was
        self.had: set[str] = set()  # sites that had their turn
        self.lost = False  # whether what was to be handed out in place of all blocks was never asked for
        self.theirs: Container[Site] = ()  # of blocks that another node replaced, which may run as often as it likes

    def whole(self, rows: Tensor) -> bool:
        """Whether these are all rows of the forward; of some of them it is not known whose they are, and the run declines."""
        if self.rows in (0, rows.shape[0]):
            return True
        self.run.decline("another node runs some of the pictures through a part of the blocks of this model")
        return False

    def first(self, site: Site) -> bool:
        """Whether a site has its first turn in this forward; what comes in a second one has no past, and the run declines."""
        if site.name not in self.had:
            self.had.add(site.name)
            return True
        if self.run.policy.history and site not in self.theirs:
            self.run.decline("another node runs blocks of this model several times in one pass")
        return False

    def action(self, site: Site) -> Action:
        """What `branch` will do. Asking changes nothing; a miss always computes."""
        action = self._actions.get(site.name)
        if action is None:
            action = self._actions[site.name] = self._decide(site)
        return action

    @_alone
    def _decide(self, site: Site) -> Action:
        run = self.run
        if run.declined or run._upward or run.policy.history == 0 or not run.policy.serves(site):
            return Action.COMPUTE
        return run.policy.decide(self.step, site) if run.store.has(site, self.streams) else Action.COMPUTE

    def branch(self, site: Site, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor:
        """fn(x), or something the policy believes is close to it. Callers must not write to the result.

        tokenwise: fn may be called with some of the tokens of x (B, N, D) alone; where it may not, PARTIAL computes.
        """
        if not (self.whole(x) and self.first(site)):
            return fn(x)
        action, out = self.action(site), None
        if action is Action.REUSE or (action is Action.PARTIAL and tokenwise):
            out, where = self.approximate(site, action, x)
        if out is None:
            return self._computed(site, fn(x))
        some = where is not None and where.shape[1] > 0
        fresh = fn(x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))) if some else None
        exact = fn(x) if self.run.measure == "truth" else None
        return self.reused(site, out, where, fresh, exact)

    @_alone
    def approximate(self, site: Site, action: Action, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the policy makes of the past, and which tokens of it (B, K) to compute.

        Nothing when the past is gone, when the policy declines, or when memory for this runs out.
        """
        run = self.run
        try:
            past = run.store.get(site, self.streams)[: run.policy.history]  # observers may keep more
            if not past:
                return None, None
            out = run.policy.reuse(self.step, site, past)
            if out is not past[0].value:
                self._changed.add(site.name)
            return out, run.policy.select(self.step, site, x, past) if action is Action.PARTIAL else None
        except Decline as reason:
            run.decline(str(reason))
            return None, None
        except (RuntimeError, MemoryError) as error:
            if not run.survives(error):
                raise
            return None, None

    @_alone
    def reused(
        self, site: Site, out: Tensor, where: Tensor | None, fresh: Tensor | None, exact: Tensor | None
    ) -> Tensor:
        """Take note of an output that was not computed, or only at the tokens `where`, which are `fresh` if there are any."""
        run = self.run
        if fresh is not None:
            out = out.scatter(1, where[..., None].expand(-1, -1, out.shape[-1]), fresh)
        error = None if exact is None else relative_error(out, exact)
        run._guessed |= site == MODEL
        action = Action.REUSE if fresh is None else Action.PARTIAL
        changed = run.policy.changes if site.name in self._changed else ""
        tokens = 0.0 if fresh is None else where.shape[1] / out.shape[1]
        run.trace.rows.append(Row(self.step.index, site, action, error, changed, tokens))
        if run.policy.keeps_reused or action is Action.PARTIAL:
            self._keep(site, out, computed=False, where=where)
        elif where is not None:
            run.store.passed_by(site, self.streams)
        return out

    def computed(self, site: Site, out: Tensor) -> Tensor:
        """Take note of an output that was computed by the host's own forward."""
        return self._computed(site, out) if self.whole(out) and self.first(site) else out

    @_alone
    def _computed(self, site: Site, out: Tensor) -> Tensor:
        run = self.run
        if self.whole(out) and (run.keeps or run.trace.rows):
            error = self._keep(site, out, computed=True) if run.keeps else None
            run.trace.rows.append(Row(self.step.index, site, Action.COMPUTE, error))
        return out

    def _guess(self, site: Site, past: list[Feature]) -> Tensor:
        """What reuse would have given here; plain reuse where no policy is at work."""
        run = self.run
        if run.policy.history and not run.declined:
            try:
                return run.policy.reuse(self.step, site, past[: run.policy.history])
            except Decline as reason:
                run.decline(str(reason))
        return past[0].value

    def mark(self, site: Site, marks: Tensor) -> None:
        """Note something (B, N) of the tokens of a site whose output is about to be computed."""
        self._marks[site.name] = marks

    def _keep(self, site: Site, out: Tensor, computed: bool, where: Tensor | None = None) -> Tensor | None:
        """Keep an output. Of one that was computed: the error that reuse would have had, and observers see it."""
        run, error = self.run, None
        watched = computed and (run.measure != "off" or run.observers)
        try:
            past = run.store.get(site, self.streams) if watched else []
            if past and past[0].value.shape != out.shape:  # as ComfyUI's KV cache takes away the tokens of references
                past = []
            if past and run.measure != "off":
                error = relative_error(self._guess(site, past), out)
            for observer in run.observers if computed else ():
                if site == MODEL:
                    observer.model(self.step, self.streams, out)
                else:
                    observer.branch(self.step, site, self.streams, out, past)
            if run.keeps and run.store.history and run.holds(site):
                marks = self._marks.pop(site.name, None)
                run.store.put(site, self.streams, out, self.step, computed, where, marks)
                if computed and run.aside and not run.declined:
                    run.aside.begun(self.step.index, site.name, out)
        except (RuntimeError, MemoryError) as problem:
            if not run.survives(problem):
                raise
        return error
