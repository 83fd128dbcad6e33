"""Train the demo DiT on the procedural shapes of `shapes.py` and save its averaged weights as safetensors.

    python tools/dev.py train --steps 3000          # about an hour on two CPU cores

Velocity prediction (arXiv 2202.00512), linear betas 1e-4 to 0.02 over 1000 steps, label dropout 0.1. Hidden matrices
are trained with Muon (arXiv 2502.16982), the rest with AdamW; cosine decay; an exponential average of the weights is
what is saved.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import shapes
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIZE, STEPS = 32, 1000


def alphas_bar() -> Tensor:
    """Signal power (1000,) of the linear schedule at each training step."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0).float()


def initialise(model: nn.Module) -> None:
    """The paper's initialisation: Xavier, small embeddings, zero gates and output."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.x_embedder.proj.weight.flatten(1))
    nn.init.zeros_(model.x_embedder.proj.bias)
    for weight in (
        model.y_embedder.embedding_table.weight,
        model.t_embedder.mlp[0].weight,
        model.t_embedder.mlp[2].weight,
    ):
        nn.init.normal_(weight, std=0.02)
    for layer in (
        *(b.adaLN_modulation[1] for b in model.blocks),
        model.final_layer.adaLN_modulation[1],
        model.final_layer.linear,
    ):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Written out: at 64 tokens this is faster backwards than the fused CPU kernel."""
    q, k, v = (u.unflatten(2, (heads, -1)).transpose(1, 2) for u in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def times(count: int, generator: torch.Generator) -> Tensor:
    """A quarter uniform, the rest around the noise levels where pictures take shape; evenly spread over the batch."""
    even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    middle = torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    uniform = torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < 0.25
    return torch.where(chosen, uniform, middle).mul(STEPS).long().clamp(0, STEPS - 1)


def optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    def hidden(name: str, weight: Tensor) -> bool:
        return name.startswith("blocks") and weight.ndim == 2 and "adaLN" not in name

    trained = [(n, w) for n, w in model.named_parameters() if w.requires_grad]
    return [
        torch.optim.Muon(
            [w for n, w in trained if hidden(n, w)], lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW([w for n, w in trained if not hidden(n, w)], lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def train(model: nn.Module, args: argparse.Namespace) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Returns the averaged weights and the loss curve as rows of (step, mean loss since the last row)."""
    generator = torch.Generator().manual_seed(args.seed)
    signal = alphas_bar()
    steps_of = optimisers(model, args.rate)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    forward = torch.compile(model) if args.compile else model
    curve, running, began = [], [], time.time()
    for step in range(args.steps):
        rate = args.rate * min(1, (step + 1) / args.warmup) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)) + 1e-6
        images, labels = shapes.batch(args.batch, SIZE, generator)
        labels[torch.rand(args.batch, generator=generator) < 0.1] = len(shapes.CLASSES)
        t = times(args.batch, generator)
        noise = torch.randn(images.shape, generator=generator)
        a = signal[t][:, None, None, None]
        noisy = a.sqrt() * images + (1 - a).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            predicted = forward(noisy, t, y=labels)
        # The velocity is the noise at clean steps and minus the picture at noisy ones: nothing to divide by the signal.
        velocity = a.sqrt() * noise - (1 - a).sqrt() * images
        loss = (predicted.float() - velocity).square().mean()
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
        if (step + 1) % 500 == 0:
            save(average, model, args, curve)
    return average, curve


def save(weights: dict[str, Tensor], model: nn.Module, args: argparse.Namespace, curve: list[list[float]]) -> None:
    """Half precision on disk; architecture facts that a file cannot show travel as metadata, the log lies beside it."""
    metadata = {
        "num_heads": str(model.config.num_heads),
        "prediction_type": "v_prediction",
        "classes": json.dumps(shapes.CLASSES),
        "training": json.dumps({"steps": args.steps, "batch": args.batch, "seed": args.seed, "rate": args.rate}),
    }
    save_file({k: v.half().contiguous() for k, v in weights.items()}, args.out, metadata=metadata)
    before = args.init.with_suffix(".json") if args.init else None
    stages = json.loads(before.read_text())["stages"] if before and before.is_file() else []
    log = {"config": model.config.as_dict(), "stages": [*stages, {"command": args.command, "loss": curve}]}
    args.out.with_suffix(".json").write_text(json.dumps(log) + "\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--average", type=float, default=0.999, help="decay of the weight average")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--init", type=Path, help="go on from these weights instead of from scratch")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "shapes-dit.safetensors")
    args = parser.parse_args(argv)
    args.command = "python tools/dev.py train " + " ".join(
        f"--{k} {getattr(args, k)}"
        for k in ("steps", "batch", "rate", "seed", "warmup", "average", "hidden", "depth", "heads", "patch")
    )
    return args


def main(dit) -> None:
    """`dit` is this pack's own `models.dit` module."""
    args = parse()
    torch.manual_seed(args.seed)
    config = dit.DiTConfig(
        hidden_size=args.hidden, depth=args.depth, num_heads=args.heads, patch_size=args.patch, in_channels=3,
        num_classes=len(shapes.CLASSES), learn_sigma=False, grid_size=SIZE // args.patch, prediction="v_prediction",
    )  # fmt: skip
    model = dit.DiT(config, attention=attention)
    initialise(model)
    model.pos_embed.data.copy_(dit.sincos_positions(args.hidden, config.grid_size, config.grid_size))
    if args.init:
        model.load_state_dict({k: v.float() for k, v in load_file(args.init).items()})
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    average, curve = train(model, args)
    save(average, model, args, curve)


if __name__ == "__main__":
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("dit", Path(__file__).parent.parent / "models" / "dit.py")
    module = sys.modules["dit"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    main(module)
