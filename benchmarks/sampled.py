"""A DiT that is sampled in the host with and without caches, and what those are calibrated with."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..cache_core.policies import L2C
from ..models.dit import DiTConfig
from ..priors import published
from ..priors.prior import Prior
from ..priors.router import TABLE, policy

SAMPLER = ("ddim", "ddim_uniform")
CALIBRATION_SEED, ROUTER_SEED = 100_000, 200_000


@dataclass
class Bench:
    """A DiT in the host, and how it is sampled.

    vae: decodes its latents; None for a model of pixels, or without one. together: pictures of a batch in one forward, 0 all.
    """

    model: object
    steps: int
    cfg: float
    size: int
    vae: object = None
    together: int = 0
    scheduler: str = SAMPLER[1]

    @property
    def sampler(self) -> tuple[str, str]:
        return SAMPLER[0], self.scheduler

    @property
    def config(self) -> DiTConfig:
        return self.model.model.diffusion_model.config

    def labels(self, first: int, count: int) -> Tensor:
        """Of these pictures: every class as often as the others."""
        return torch.arange(first, first + count) % self.config.num_classes

    def latent(self, count: int) -> Tensor:
        return torch.zeros(count, self.config.in_channels, self.size, self.size)

    def sample(self, model, labels: Tensor, seed: int, steps: int = 0) -> Tensor:
        """Latents (B, C, H, W)."""
        import comfy.sample

        from ..nodes.dit import conditioning

        asked, count = self.schedule(steps or self.steps)[0], self.together or len(labels)
        noise = comfy.sample.prepare_noise(self.latent(len(labels)), seed)
        return torch.cat([
            comfy.sample.sample(
                model, noise, asked, self.cfg, *self.sampler, conditioning(part), conditioning(torch.full_like(part, -1)),
                self.latent(len(part)), disable_pbar=True, seed=seed,
            )
            for part, noise in zip(labels.split(count), noise.split(count), strict=True)
        ])  # fmt: skip

    def sigmas(self) -> list[float]:
        """The noise level of every step."""
        return self.schedule(self.steps)[1][:-1]

    def schedule(self, steps: int) -> tuple[int, list[float]]:
        """What to ask this scheduler for to get so many steps, and the noise levels that it gives, 0 the last.

        It may give one step more where they do not divide its 1000.
        """
        import comfy.samplers

        levels = self.model.get_model_object("model_sampling")
        for asked in range(steps, 0, -1):
            sigmas = comfy.samplers.calculate_sigmas(levels, self.scheduler, asked)
            if len(sigmas) - 1 == steps:
                return asked, sigmas.tolist()
        raise SystemExit(
            f"the scheduler {self.scheduler} cannot take {steps} steps; choose a number such as 10, 20, 25 or 50"
        )

    def pictures(self, latents: Tensor) -> Tensor | None:
        """(B, 3, H, W) in [0, 1], where they can be had."""
        if self.config.in_channels == 3:
            return latents.float().clamp(-1, 1).add(1).div(2)
        return None if self.vae is None else self.vae.decode(latents.float()).movedim(-1, 1).float().clamp(0, 1)


@dataclass
class Aids:
    """What policies are made with, from seeds of its own; kept as files that say in their names how they were made."""

    bench: Bench
    folder: Path
    pictures: int = 240
    batch: int = 48
    penalty: float = 5e-6
    iterations: int = 100  # per cache step
    share: float = 0.22  # of all branches that L2C reuses, as in the papers
    threshold: float | None = None  # of its gates, in place of a share
    authors: Path | None = None  # a router as they published it, in place of one that is trained
    loaded: dict[str, Prior] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @property
    def prior(self) -> Prior:
        """Statistics and mean features of uncached sampling, as the Calibrate node makes them."""
        return self._kept(f"prior-{self.pictures}.safetensors", self._calibrate)

    @property
    def router(self) -> Prior:
        """Gates as the Train Router node learns them, or those of the authors."""
        if self.authors is not None:
            return self._kept(f"router-{self.authors.stem}.safetensors", self._read)
        return self._kept(f"router-{self.penalty:g}-{self.iterations}.safetensors", self._train)

    def l2c(self) -> L2C:
        if self.authors is not None:
            return policy(self.router, 0.1 if self.threshold is None else self.threshold)
        gates = self.router.tables[TABLE]
        lowest = gates[gates.isfinite()].sort().values
        count = min(max(round(self.share * gates.numel()), 1), len(lowest))
        return policy(self.router, lowest[count - 1].item() if self.threshold is None else self.threshold)

    def _kept(self, name: str, make: Callable[[Path], None]) -> Prior:
        self.used.add(name)
        if name not in self.loaded:
            if not (self.folder / name).exists():
                make(self.folder / name)
            self.loaded[name] = Prior.load(self.folder / name)
        return self.loaded[name]

    def hold(self, files: dict[str, bytes]) -> None:
        """Take those that another process made, by the names of their files."""
        for name, data in files.items():
            if name not in self.loaded:
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / name
                    file.write_bytes(data)
                    self.loaded[name] = Prior.load(file)

    def _labels(self, count: int) -> Tensor:
        """As many, evenly from all classes."""
        return torch.arange(count) * self.bench.config.num_classes // count

    def _sampled(self, labels: Tensor, runs: int, seed: int) -> dict:
        """What both nodes ask for."""
        from ..nodes.dit import conditioning

        return {
            "model": self.bench.model, "positive": conditioning(labels),
            "negative": conditioning(torch.full_like(labels, -1)), "latent_image": {"samples": self.bench.latent(len(labels))},
            "seed": seed, "runs": runs, "steps": self.bench.steps, "cfg": self.bench.cfg, "sampler_name": self.bench.sampler[0],
            "scheduler": self.bench.scheduler, "denoise": 1.0,
        }  # fmt: skip

    def _calibrate(self, file: Path) -> None:
        from ..nodes.calibrate import PriorCacheCalibrate

        say(f"calibrating on {self.pictures} pictures -> {file.name}")
        priors = [
            PriorCacheCalibrate.execute(
                **self._sampled(labels, 1, CALIBRATION_SEED + i), longest_gap=2, mean_features=True
            ).args[0]
            for i, labels in enumerate(self._labels(self.pictures).split(self.batch))
        ]
        Prior.merge(priors).save(file)

    def _read(self, file: Path) -> None:
        router = published.read(self.authors)
        if router.subject.total != self.bench.steps:
            raise SystemExit(
                f"{self.authors.name} is a router for {router.subject.total} steps: give --steps {router.subject.total}"
            )
        router.save(file)

    def _train(self, file: Path) -> None:
        from ..nodes.l2c import PriorCacheTrainRouter

        iterations = self.iterations * (self.bench.steps // 2)
        say(f"training a router for {iterations} iterations -> {file.name}")
        PriorCacheTrainRouter.execute(
            **self._sampled(self._labels(12), 8, ROUTER_SEED), iterations=iterations, penalty=f"{self.penalty:g}", learning_rate=0.05,
            threshold=0.1, save_memory=True,
        ).args[0].save(file)  # fmt: skip


def side_of(config: DiTConfig, asked: int, name: str) -> int:
    """Of a latent: what was asked for, else what the checkpoint was trained at."""
    side = asked or (config.grid_size or 0) * config.patch_size
    if not side:
        raise SystemExit(f"{name} does not say what size it was trained at: give --size, 32 for 256 x 256 pixels")
    return side


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
