"""Repositories of authors on this disk, and what of theirs is run beside ours, with the same weights and noise."""

from __future__ import annotations

import importlib
import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import SourcelessFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Generator, Tensor

from ...cache_core.policies import CachePolicy
from ...cache_core.policies.toca import drawn
from ...cache_core.sites import Site, Step


@dataclass(frozen=True)
class Source:
    """Where a method was published. folder: within the repository; network: the module that has it, or its .pyc."""

    repository: str
    folder: str
    network: str = "models"

    @property
    def name(self) -> str:
        return self.repository.partition("/")[2]

    def commit(self, code: Path) -> str:
        return subprocess.check_output(["git", "-C", code / self.name, "rev-parse", "HEAD"], text=True).strip()

    @contextmanager
    def opened(self, code: Path) -> Iterator[ModuleType]:
        """The module with the network; others of its folder can be imported, and are gone and silent afterwards.

        Those of other folders have the same names, and most of them print.
        """
        folder = code / self.name / self.folder
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not there: clone https://github.com/{self.repository} into {code}")
        before = set(sys.modules)
        sys.path.insert(0, str(folder))
        try:
            with redirect_stdout(io.StringIO()):
                yield self._compiled(folder) if self.network.endswith(".pyc") else importlib.import_module(self.network)
        finally:
            sys.path.remove(str(folder))
            own = {path.stem for path in folder.iterdir()}
            for name in [name for name in set(sys.modules) - before if name.partition(".")[0] in own]:
                del sys.modules[name]

    def _compiled(self, folder: Path) -> ModuleType:
        loader = SourcelessFileLoader("compiled", str(folder / self.network))
        module = module_from_spec(spec_from_loader("compiled", loader))
        try:
            loader.exec_module(module)
        except ImportError as error:
            raise SystemExit(f"{self.network}: {error}; run this as python3.10 tools/dev.py") from None
        return module


@dataclass(frozen=True)
class Case:
    """A method in one setting. options: what their code is told; changes: what is changed in it before."""

    source: Source
    steps: int
    policy: Callable[[], CachePolicy]
    options: dict = field(default_factory=dict)
    changes: tuple[Callable[..., None], ...] = ()

    def changed(self, *parts: object) -> None:
        """Makes the changes to these parts of their code."""
        for change in self.changes:
            change(*parts)

    def theirs(self, code: Path) -> Tensor:
        """What their code draws: (B, C, H, W)."""
        raise NotImplementedError

    def drawn(self, policy: CachePolicy) -> Tensor:
        """What ComfyUI draws with a policy: (B, C, H, W)."""
        raise NotImplementedError

    def ours(self) -> Tensor:
        return self.drawn(self.policy())


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def uniform(rng: Generator, *shape: int) -> Tensor:
    """Between -1 and 1."""
    return torch.rand(shape, generator=rng) * 2 - 1


def weight(rng: Generator, shape: torch.Size) -> Tensor:
    """Of a network whose features move from step to step, and that keeps the size of what passes through."""
    return uniform(rng, *shape) * (math.sqrt(3 / shape[1:].numel()) if len(shape) > 1 else 0.1)


def normal(rng: Generator, *shape: int) -> Tensor:
    """About so: a sum of twelve uniform ones."""
    return sum(torch.rand(shape, generator=rng) for _ in range(12)) - 6


def wrapped(owner: object, name: str, by: Callable) -> None:
    """Puts by(what was there, ...) in its place."""
    setattr(owner, name, partial(by, getattr(owner, name)))


def dealt(module: ModuleType, place: Callable[[dict], tuple[int, str]]) -> None:
    """Random scores of their `module` are ours, as no two generators agree. place: the step and the branch that they are of."""

    def evaluated(evaluate, cache, tokens, current):
        step, branch = place(current)
        scores = drawn(Step(step, 0, 0.0, 0.0), Site(branch, 0, 0), tokens.shape[1])
        with patch.object(torch, "rand", lambda rows, *_, **__: scores.expand(rows, -1)):
            return evaluate(cache, tokens, current)

    wrapped(module, "score_evaluate", evaluated)


def sampled(
    model, policy: CachePolicy, noise: Tensor, cfg: float, sampler: str, sigmas: Tensor, positive: list, negative: list
) -> Tensor:
    """What ComfyUI makes of noise with a policy: (B, C, H, W)."""
    import comfy.sample
    import comfy.samplers

    from ...nodes.attach import attach

    return comfy.sample.sample_custom(
        attach(model, policy), noise, cfg, comfy.samplers.sampler_object(sampler), sigmas, positive, negative,
        torch.zeros_like(noise), disable_pbar=True, seed=0,
    )  # fmt: skip
