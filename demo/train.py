"""Train a demo model on the procedural shapes of `shapes.py` and save its averaged weights as safetensors.

    python tools/dev.py train dit                   # about an hour on two CPU cores
    python tools/dev.py train flux
    python tools/dev.py train pixart

What is trained is told by the recipes `dit.py`, `flux.py` and `pixart.py`; how, here. Hidden matrices are trained with Muon
(arXiv 2502.16982), the rest with AdamW; cosine decay; an exponential average of the weights is what is saved.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
DEFAULTS = {
    "dit": {"hidden": 256, "depth": [6]},
    "flux": {"hidden": 256, "depth": [1, 4]},
    "pixart": {"hidden": 192, "depth": [6]},
}


def initialise(model: nn.Module, zeroed: tuple[str, ...], small: tuple[str, ...]) -> None:
    """The papers' initialisation: Xavier, small embeddings, zero gates and output."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            if name.endswith(zeroed):
                nn.init.zeros_(module.weight)
            elif name.startswith(small):
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight.flatten(1))
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


def times(count: int, generator: torch.Generator) -> Tensor:
    """In [0, 1): a quarter uniform, the rest around the noise levels where pictures take shape; evenly spread."""
    even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    middle = torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    uniform = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.25, uniform, middle).clamp(max=1 - 1e-6)


def optimisers(recipe, model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    trained = [(n, w) for n, w in model.named_parameters() if w.requires_grad]
    matrices = [w for n, w in trained if w.ndim == 2 and recipe.hidden(n)]
    rest = [w for n, w in trained if not (w.ndim == 2 and recipe.hidden(n))]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def train(recipe, args: argparse.Namespace) -> None:
    """Writes the averaged weights and the loss curve, rows of (step, mean loss since the last row), every 250 steps."""
    model = recipe.initialised()
    generator = torch.Generator().manual_seed(args.seed)
    steps_of = optimisers(recipe, model, args.rate)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    forward = torch.compile(model) if args.compile else model
    curve, running, began = [], [], time.time()
    for step in range(args.steps):
        rate = args.rate * min(1, (step + 1) / args.warmup) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)) + 1e-6
        pictures, conds = recipe.batch(args.batch, generator)
        noise = torch.randn(pictures.shape, generator=generator)
        noisy, told, wanted = recipe.noised(pictures, noise, times(args.batch, generator))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = forward(noisy, told, **conds)
        loss = (predicted.float() - wanted).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in steps_of:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(args.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                average[name].lerp_(weight, 1 - decay)
        running.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            curve.append([step + 1, round(sum(running) / len(running), 5)])
            running.clear()
            print(f"step {step + 1:6d}  loss {curve[-1][1]:.4f}  {time.time() - began:7.0f} s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            save(recipe, average, args, curve)


def save(recipe, weights: dict[str, Tensor], args: argparse.Namespace, curve: list[list[float]]) -> None:
    """Half precision on disk; architecture facts that a file cannot show travel as metadata, the log lies beside it."""
    half = {k: v.half().contiguous() for k, v in recipe.stored(weights).items()}
    save_file(half, args.out, metadata=recipe.metadata())
    before = args.init.with_suffix(".json") if args.init else None
    stages = json.loads(before.read_text())["stages"] if before and before.is_file() else []
    log = {"config": recipe.description(), "stages": [*stages, {"command": args.command, "loss": curve}]}
    args.out.with_suffix(".json").write_text(json.dumps(log) + "\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=DEFAULTS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--average", type=float, default=0.999, help="decay of the weight average")
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--depth", type=int, nargs="+", help="number of blocks; for flux, of double and of single ones")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--init", type=Path, help="go on from these weights instead of from scratch")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    args.hidden = args.hidden or DEFAULTS[args.model]["hidden"]
    args.depth = args.depth or DEFAULTS[args.model]["depth"]
    told = {k: getattr(args, k) for k in ("steps", "batch", "rate", "seed", "warmup", "average", "hidden")}
    options = " ".join(f"--{k} {v}" for k, v in told.items()) + f" --depth {' '.join(map(str, args.depth))}"
    args.command = f"python tools/dev.py train {args.model} {options}"
    return args


def main() -> None:
    args = parse()
    sys.path.insert(0, str(FOLDER.parent / "tools"))
    torch.manual_seed(args.seed)
    recipe = importlib.import_module(args.model).Recipe(args)
    args.out = args.out or FOLDER / recipe.file
    initialise(recipe.network, recipe.zeroed, recipe.small)
    if args.init:
        weights = {k: v.float() for k, v in load_file(args.init).items()}
        recipe.network.load_state_dict(recipe.loaded(weights))
    print(f"{sum(p.numel() for p in recipe.network.parameters()) / 1e6:.2f} M parameters", flush=True)
    train(recipe, args)


if __name__ == "__main__":
    main()
