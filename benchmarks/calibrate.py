"""Calibrates a model over many prompts and seeds and writes one prior, here or on a Ray cluster.

    python tools/dev.py calibrate --seeds 8                          # the demo DiT: every class, eight times
    python tools/dev.py calibrate --model flux --prompts 'red star on blue' 'green ring on pink'
    python tools/dev.py calibrate --model flux --prompts @prompts.txt --ray auto    # a prompt a line, on a Ray cluster
    python tools/dev.py calibrate --file DiT-XL-2-256x256.pt --prompts 0-999 --size 32 --sampler euler --gpu

Every batch of prompts with a seed of its own is a unit, whose statistics are kept as a file beside --out. The same
command goes on from what is there, with more --seeds too; the units then add up to the prior.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from ..cache_core.policies import FORA
from ..cache_core.policies.fora import PRESETS
from ..errors import SettingError
from ..models.checkpoint import EMBEDDINGS, PREDICTIONS
from ..priors.prior import Prior
from ..priors.statistics import Statistics
from .cells import Cell
from .sampled import say, side_of

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo" / "out" / "calibrate"


class Subject(NamedTuple):
    """A model, what is sampled by default, and how it is told what to sample."""

    model: object
    latent: torch.Tensor  # (1, C, H, W)
    prompts: list[str]
    told: Callable[[list[str]], tuple[list, list]]  # (positive, negative)


@lru_cache(maxsize=1)
def opened(settings: str) -> Subject:
    """What is calibrated. Raises SettingError or CheckpointError."""
    import fleet

    args = fleet.restored(settings)
    return (labelled if args.model == "dit" else captioned)(args)


def labelled(args: argparse.Namespace) -> Subject:
    """A DiT, told class numbers."""
    from ..models.host import load
    from ..nodes.dit import DTYPES, conditioning, parse_labels

    model = load(args.file, args.heads, args.embedding, DTYPES[args.dtype], args.prediction)
    config = model.model.diffusion_model.config
    side = side_of(config, args.size, Path(args.file).name)

    def told(prompts: list[str]) -> tuple[list, list]:
        labels = torch.tensor(parse_labels(", ".join(prompts)))
        if labels.max() >= config.num_classes:
            raise SettingError(f"class {labels.max()} is out of range: this model knows 0 to {config.num_classes - 1}")
        return conditioning(labels), conditioning(torch.full_like(labels, -1))

    return Subject(
        model, torch.zeros(1, config.in_channels, side, side), list(map(str, range(config.num_classes))), told
    )


def captioned(args: argparse.Namespace) -> Subject:
    """A demo model that reads prompts."""
    from judge import Drawer

    drawer = Drawer(args.model, Path(args.file))
    shapes = drawer.captions(torch.arange(len(drawer.words.SHAPES)), 0)
    return Subject(
        drawer.model, drawer.latent(1), shapes, lambda p: (drawer.conditioning(p), drawer.conditioning([""] * len(p)))
    )


@torch.inference_mode()
def unit(settings: str, shared: dict, number: int, prompts: list[str], seed: int) -> bytes:
    """The prior of these prompts, sampled at once, as a file."""
    import fleet

    from ..nodes.calibrate import calibrated
    from ..nodes.sampling import Sampling

    args, subject = fleet.restored(settings), opened(settings)
    latent = subject.latent.repeat(len(prompts), 1, 1, 1)
    sample = Sampling(*subject.told(prompts), latent, args.steps, args.cfg, args.sampler, args.scheduler)
    policy = FORA(**PRESETS[f"{args.fora} %"]) if args.fora else None
    prior = calibrated(subject.model, sample, (seed,), Statistics(args.longest_gap, args.mean_features, policy))
    with tempfile.TemporaryDirectory() as folder:
        return prior.save(Path(folder) / "prior.safetensors").read_bytes()


def parsed(argv: list[str]) -> argparse.Namespace:
    import fleet
    from judge import SAMPLERS, weights

    from ..nodes.dit import DTYPES

    parser = argparse.ArgumentParser(
        prog="calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
    )
    parser.add_argument("--model", choices=SAMPLERS, default="dit", help="a demo model, or what --file is")
    parser.add_argument("--file", type=Path, help="other weights than the demo's: any DiT that Load DiT takes")
    parser.add_argument("--heads", type=int, default=0, help="of a DiT, as in Load DiT; 0: as the file says")
    parser.add_argument("--embedding", choices=EMBEDDINGS, default="auto", help="as timestep_embedding in Load DiT")
    parser.add_argument("--dtype", choices=DTYPES, default="default", help="of a DiT's weights, as in Load DiT")
    parser.add_argument("--prediction", choices=PREDICTIONS, default="auto", help="of a DiT, as in Load DiT")
    parser.add_argument("--size", type=int, default=0, help="side of a DiT's latent; 0: what it was trained at")
    parser.add_argument(
        "--prompts", nargs="+", help="class numbers such as 3 or 20-22, or prompts; by default each class or shape once"
    )
    parser.add_argument(
        "--seeds", type=int, default=4, help="how often every prompt is sampled, with other noise each time"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first unit; each further one adds 1")
    parser.add_argument("--batch", type=int, default=12, help="prompts of a unit, sampled at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=1.5)
    parser.add_argument("--sampler", help="as ComfyUI names it; by default the demo model's")
    parser.add_argument("--scheduler")
    parser.add_argument("--longest-gap", type=int, default=2, help="longest distance of reuse to measure, in steps")
    parser.add_argument("--mean-features", action="store_true", help="also mean outputs, which EOC needs; large")
    parser.add_argument("--fora", type=int, choices=(25, 50, 75), help="those only where FORA of this preset reuses")
    parser.add_argument("--out", type=Path, help="the prior; by default in demo/out/calibrate")
    fleet.options(parser)
    args = parser.parse_args(argv)
    if min(args.seeds, args.batch, args.steps, args.longest_gap, args.cpus) < 1:
        parser.error("--seeds, --batch, --steps, --longest-gap and --cpus must be 1 or more")
    given = [
        name
        for name in ("heads", "embedding", "dtype", "prediction", "size")
        if getattr(args, name) != parser.get_default(name)
    ]
    if args.model != "dit" and given:
        parser.error(f"--{given[0]} is of a DiT, and --model is {args.model}")
    if args.fora and not args.mean_features:
        parser.error("--fora says which mean features to keep: give --mean-features, too")
    args.file = args.file or weights(args.model)
    args.sampler, args.scheduler = args.sampler or SAMPLERS[args.model][0], args.scheduler or SAMPLERS[args.model][1]
    args.out = args.out or OUT / f"{args.file.stem}-{args.sampler}-{args.steps}.safetensors"
    if args.out.suffix != ".safetensors":
        parser.error(f"--out is {args.out.name}; the prior is a .safetensors file")
    return args


def main(argv: list[str]) -> None:
    import comfy.cli_args
    import fleet

    from ..nodes.dit import parse_labels
    from ..plots.prior import summary

    args = parsed(argv)
    run = ("ray", "cpus", "out", "prompts", "seeds", "seed", "batch")
    settings = fleet.settings(args, *run)
    with torch.inference_mode():
        subject = opened(settings)
        prompts = args.prompts or subject.prompts
        if args.model == "dit":
            prompts = list(map(str, parse_labels(", ".join(prompts))))
        subject.told(prompts)  # refuses what it does not know
    chunks = math.ceil(len(prompts) / args.batch)
    cell = Cell(args.out.with_suffix(".parts"))
    host = comfy.cli_args.args
    cell.claim(
        **fleet.here(()), cpu=host.cpu, fp32=host.fp32_unet, model=fleet.digest(args.file), prompts=hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        **{name: value for name, value in vars(args).items() if name not in ("model", "file", "ray", "cpus", "out", "prompts", "seeds")},
    )  # fmt: skip
    numbers = range(chunks * args.seeds)
    say(f"{len(prompts)} prompts x {args.seeds} seeds in {len(numbers)} units -> {args.out}")
    units = ((n, prompts[n % chunks * args.batch :][: args.batch], args.seed + n) for n in numbers if not cell.has(n))
    for (n, *_), prior in fleet.results(unit, settings, units, args, [args.file]):
        cell.keep(n, prior)
        say(f"unit {n + 1} of {len(numbers)}")
    prior = Prior.merge(Prior.load(cell.path(n)) for n in numbers)
    prior.save(args.out)
    print(summary(prior))
    print(f"{args.out}: {prior.samples} pictures")
