"""The router of Learning-to-Cache (arXiv 2406.01733): one gate per branch and cache step, learned from the model itself.

Every second evaluation is a full step; the one after it is a cache step, whose gates b mix each branch's output f with
the one that the full step had, b * f + (1 - b) * f_full. What is learned is the smallest sum of gates that leaves the
network's output as it was. The authors learn on noised pictures of a data set; here it is the model's own trajectories, sampled
with guidance, so that no data are needed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..cache_core.adapters import adapter_for, computing, overridden
from ..cache_core.adapters.base import Block
from ..cache_core.policies import L2C
from ..cache_core.run import relative_error
from ..cache_core.sites import Feature, Site, Step, Streams
from .parts import as_one
from .prior import Prior, PriorError

TABLE = "router"
BOUND = 5.0  # what gates are before the sigmoid stays within this, as in the authors' code
LEAST = 2.0**-24  # what a loss is scaled by at least


class RouterError(PriorError):
    """A router that cannot be read or trained; says why, and how to mend it."""


def policy(prior: Prior, threshold: float = 0.1) -> L2C:
    """The policy that reuses every branch whose gate is at most `threshold`. Raises PriorError without a router."""
    if TABLE not in prior.tables:
        raise RouterError("this prior has no router: make one with Train Router, or read one with Load Router")
    scores = tuple(map(tuple, prior.tables[TABLE].nan_to_num(nan=math.inf).tolist()))
    return L2C(scores, prior.sites, prior.subject.total, threshold)


def cache_steps(evaluations: int) -> range:
    """The evaluations that reuse features, each those of the one before it."""
    return range(1, evaluations, 2)


class Call(NamedTuple):
    """One forward of the network as the host made it: whose rows, with what, and what came out."""

    streams: tuple
    args: tuple
    kwargs: dict
    out: Tensor  # of several, such as video and sound, all in one row


class Recorder:
    """An observer of CacheRun that keeps every forward of a network during sampling.

    attention: called in place of the host's own where networks ask for one, `attention(theirs, *args, **kwargs)`;
    some of the host's have no backward pass. Inputs that do not change from step to step are kept once.
    """

    branches, history = False, 0

    def __init__(self, network: nn.Module, attention: Callable | None = None):
        self.network, self.attention = network, attention
        self.trajectories: list[dict[int, list[Call]]] = []  # evaluation -> its forwards
        self._calls: list[Call] = []
        self._last: tuple = ((), {})

    @contextmanager
    def trajectory(self) -> Iterator[None]:
        """One sampling call."""
        self.trajectories.append({})
        self._calls.clear()
        forward = self.network.forward

        def recorded(*args, **kwargs):
            with torch.inference_mode(False):
                given = self._last = owned((args, kwargs), self._last)
            out = forward(*args, **kwargs)
            options = kwargs.get("transformer_options") or {}
            whole = as_one(out)
            streams = (tuple(options.get("cond_or_uncond", ())), tuple(whole.shape))
            with torch.inference_mode(False):
                self._calls.append(Call(streams, given[0], self._with_attention(given[1]), whole.detach().clone()))
            return out

        with overridden([(self.network, recorded)]):
            yield

    def _with_attention(self, kwargs: dict) -> dict:
        if self.attention is None or "transformer_options" not in kwargs:
            return kwargs
        options = {**kwargs["transformer_options"], "optimized_attention_override": self.attention}
        return {**kwargs, "transformer_options": options}

    def branch(self, step: Step, site: Site, streams: Streams, out: Tensor, past: list[Feature]) -> None:
        pass

    def model(self, step: Step, streams: Streams, derivative: Tensor) -> None:
        """The host tells of every evaluation when its forwards are done."""
        self.trajectories[-1].setdefault(step.index, []).extend(self._calls)
        self._calls.clear()


def owned(value, before=None):
    """A copy with tensors of its own, or that of `before` where it holds the same numbers."""
    if isinstance(value, Tensor):
        same = isinstance(before, Tensor) and value.dtype == before.dtype and value.device == before.device
        return before if same and torch.equal(value, before) else value.detach().clone()
    if type(value) is dict:
        before = before if isinstance(before, dict) else {}
        return {key: owned(v, before.get(key)) for key, v in value.items()}
    if type(value) in (list, tuple):
        before = before if type(before) is type(value) and len(before) == len(value) else [None] * len(value)
        return type(value)(owned(v, b) for v, b in zip(value, before, strict=True))
    return value


@contextmanager
def ordinary(network: nn.Module) -> Iterator[None]:
    """Weights as frozen tensors that autograd passes through, on the same memory.

    The host loads them in inference mode, and autograd refuses to save such tensors for the backward pass.
    """
    tables = [table for module in network.modules() for table in (module._parameters, module._buffers)]
    held = [(table, name, t) for table in tables for name, t in table.items() if type(t) in (Tensor, nn.Parameter)]
    try:
        for table, name, tensor in held:
            table[name] = _ordinary(tensor)
        yield
    finally:
        for table, name, tensor in held:
            table[name] = tensor


def _ordinary(tensor: Tensor) -> Tensor:
    if tensor.is_inference():
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        view = empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    else:
        view = tensor.detach()
    return nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view


def gated(network: nn.Module) -> list[Block]:
    """The blocks whose branches get a gate. Raises RouterError where there is no adapter that knows them."""
    adapter = adapter_for(network)
    if adapter is None:
        raise RouterError(
            f"PriorCache has no adapter for {type(network).__name__}, so there are no branches to put a gate on"
        )
    return adapter.blocks(network)


class RouterTraining:
    """Learns the gates of one network on recorded trajectories; the network stays as it is.

    sites: the columns of the result. penalty: lambda, the weight of the sum of gates beside the mean square error of
    the network's output. scores (T, S): gates to go on from, nan where there are none. save_memory: keep only what
    enters each block for the backward pass and compute the blocks anew, a third slower. Raises RouterError when the
    network has no adapter, or when its blocks are not what the adapter knows.
    """

    def __init__(
        self,
        network: nn.Module,
        sites: Sequence[str],
        trajectories: list[dict[int, list[Call]]],
        penalty: float = 5e-6,
        rate: float = 1e-3,
        seed: int = 0,
        scores: Tensor | None = None,
        save_memory: bool = True,
    ):
        self.network, self.blocks, self.sites = network, gated(network), tuple(sites)
        self.penalty, self.save_memory = penalty, save_memory
        self.columns = {name: i for i, name in enumerate(self.sites)}
        self.evaluations = len(trajectories[0])
        self.pairs = _pairs(trajectories, self.evaluations)
        self.losses: list[tuple[int, float]] = []  # (evaluation, mean square error) of every iteration
        self.scale = 1.0  # of the loss; smaller once a gradient was beyond the range of half precision
        self._random = random.Random(seed)
        self._waiting: list[int] = []
        self._trained = set() if scores is None else {k for k in self.pairs if not scores[k].isnan().any()}
        with torch.inference_mode(False):
            self.rows = self._initial(seed, scores, trajectories[0][0][0].out.device)
            self.optimizer = torch.optim.AdamW(self.rows.values(), lr=rate, weight_decay=0.0)

    def _initial(self, seed: int, scores: Tensor | None, device: torch.device) -> dict[int, nn.Parameter]:
        """Normally distributed as in the authors' code, or those of the scores."""
        rng = torch.Generator().manual_seed(seed % 2**63)
        rows = {k: torch.randn(len(self.sites), generator=rng) for k in self.pairs}
        for k in self._trained:
            rows[k] = scores[k].clone().logit().float().clamp(-BOUND, BOUND)
        return {k: nn.Parameter(row.to(device)) for k, row in rows.items()}

    def run(self, iterations: int, tick: Callable[[int], None] = lambda done: None) -> None:
        """Train on; `tick(done)` after every iteration may stop it with an exception, and what was learned stays."""
        with torch.inference_mode(False), torch.enable_grad(), ordinary(self.network):
            self._check()
            for done in range(1, iterations + 1):
                self._iterate()
                tick(done)

    def scores(self) -> Tensor:
        """Gates (T, S) in [0, 1]; nan at full steps, and at cache steps that were never trained."""
        out = torch.full((self.evaluations, len(self.sites)), float("nan"), dtype=torch.float64)
        for k in self._trained:
            out[k] = self.rows[k].detach().cpu().double().sigmoid()
        return out

    def _iterate(self) -> None:
        """One cache step for all rows, of one trajectory: each gate gets the whole batch's gradient."""
        if not self._waiting:
            self._waiting = self._random.sample(list(self.pairs), len(self.pairs))
        k = self._waiting.pop()
        row, pair = self.rows[k], self._random.choice(self.pairs[k])
        count = sum(now.out.numel() for _, now in pair)
        error = self._gradient(row, pair)
        while not row.grad.isfinite().all():
            self.optimizer.zero_grad()
            self.scale /= 16
            if self.scale < LEAST:
                raise RouterError(
                    f"what this {type(self.network).__name__} computes at evaluation {k} leaves the range of {pair[0][1].out.dtype}, so that "
                    "its gates have no gradient; load the model in bfloat16 or float32, then train"
                )
            error = self._gradient(row, pair)
        row.grad = row.grad / self.scale / count + self.penalty * torch.autograd.grad(row.sigmoid().sum(), row)[0]
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            row.clamp_(-BOUND, BOUND)
        self._trained.add(k)
        self.losses.append((k, error / count))

    def _gradient(self, row: nn.Parameter, pair: list[tuple[Call, Call]]) -> float:
        """The square error of these forwards, whose gradient times `scale` is left in row.grad."""
        error = 0.0
        for full, now in pair:
            features = self._features(full)
            loss = (self._student(now, row.sigmoid(), features).float() - now.out.float()).square().sum()
            self._backward(loss * self.scale)  # of the sum: gradients of the mean would vanish in half precision
            error += loss.item()
        return error

    def _backward(self, loss: Tensor) -> None:
        """Kernels that a host runs in training, too, may have no gradient."""
        try:
            loss.backward()
        except RuntimeError as error:
            if "autograd formula" not in str(error):
                raise
            raise RouterError(
                f"this ComfyUI runs {type(self.network).__name__} by a kernel that has no gradient, so that no router can be "
                f"trained on it ({error}); every policy but L2C needs none"
            ) from error

    @torch.no_grad()
    def _features(self, call: Call) -> dict[str, Tensor]:
        """The output of every branch at a full step."""
        found: dict[str, Tensor] = {}

        def noted(block: Block, name: str, fn, x: Tensor) -> Tensor:
            out = found[block.sites[name].name] = fn(x)
            return out

        self._forward(call, noted)
        return found

    def _student(self, call: Call, gates: Tensor, features: dict[str, Tensor]) -> Tensor:
        def mixed(block: Block, name: str, fn, x: Tensor) -> Tensor:
            site = block.sites[name].name
            new = fn(x)
            if site not in self.columns or site not in features:
                return new
            return torch.lerp(features[site], new, gates[self.columns[site]].to(new.dtype))

        return self._forward(call, mixed, self.save_memory)

    def _forward(self, call: Call, branch: Callable, save_memory: bool = False) -> Tensor:
        """The network with its blocks' equations in place of the host's blocks, which write to their inputs."""

        def equation(block: Block) -> Callable:
            def own(name: str, fn: Callable[[Tensor], Tensor], x: Tensor, tokenwise: bool = False) -> Tensor:
                return branch(block, name, fn, x)

            def forward(*args, **kwargs):
                if save_memory:
                    return checkpoint(
                        block.equation,
                        block.module,
                        own,
                        *args,
                        use_reentrant=False,
                        preserve_rng_state=False,
                        **kwargs,
                    )
                return block.equation(block.module, own, *args, **kwargs)

            return forward

        with overridden([(block.module, equation(block)) for block in self.blocks]):
            return as_one(self.network(*call.args, **call.kwargs))

    @torch.no_grad()
    def _check(self) -> None:
        """With every gate open the equations must give what the host gave."""
        _, call = next(iter(self.pairs.values()))[0][0]
        off = relative_error(self._forward(call, lambda block, *rest: computing(*rest)), call.out).item()
        if not off < (1e-3 if call.out.dtype in (torch.float32, torch.float64) else 0.1):
            raise RouterError(
                f"the blocks of this {type(self.network).__name__} compute something other than PriorCache knows "
                f"(relative difference {off:.1e}): remove nodes that change its attention or its blocks, then train"
            )


def _pairs(trajectories: list[dict[int, list[Call]]], evaluations: int) -> dict[int, list[list[tuple[Call, Call]]]]:
    """Cache step -> for every trajectory, its forwards, each behind that of the full step before it.

    Where the host grouped the conds otherwise at the two steps, there is no pair.
    """
    found: dict[int, list[list[tuple[Call, Call]]]] = {}
    for k in cache_steps(evaluations):
        for trajectory in trajectories:
            full, now = trajectory[k - 1], trajectory[k]
            if [c.streams for c in full] == [c.streams for c in now]:
                found.setdefault(k, []).append(list(zip(full, now, strict=True)))
    if not found:
        raise RouterError(
            "there is no pair of steps to train on: sample at least 2 steps, and conds that take part in all of them"
        )
    return found
