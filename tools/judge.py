"""How good is the demo model? Samples it in the real host and lets the classifier of `demo/classifier.py` name the pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pack import ROOT, load_host, load_pack

sys.path.insert(0, str(ROOT / "demo"))
import classifier
import shapes


def pictures(sampling, model, count: int, cfg: float, seed: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` pictures per class and their labels."""
    from priorcache.nodes.dit import conditioning

    labels = torch.arange(len(shapes.CLASSES)).repeat(count)
    latent = torch.zeros(len(labels), 3, 32, 32)
    noise = sampling.prepare_noise(latent, seed)
    null = conditioning(torch.full_like(labels, -1))
    out = sampling.sample(
        model,
        noise,
        steps,
        cfg,
        "ddim",
        "ddim_uniform",
        conditioning(labels),
        null,
        latent,
        disable_pbar=True,
        seed=seed,
    )
    return out, labels


def sheet(images: torch.Tensor, columns: int) -> Image.Image:
    rows = (images.clamp(-1, 1) + 1).mul(127.5).round().byte().repeat_interleave(3, 2).repeat_interleave(3, 3)
    rows = torch.nn.functional.pad(rows, (2, 2, 2, 2), value=255)
    lines = [torch.cat(list(part), dim=2) for part in rows.split(columns)]
    return Image.fromarray(torch.cat(lines, dim=1).permute(1, 2, 0).numpy())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true", help="train the classifier first")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "shapes-dit.safetensors")
    args = parser.parse_args()
    if args.train:
        with torch.inference_mode(False), torch.enable_grad():
            classifier.save(classifier.train())
    judge = classifier.load()
    fresh, labels = shapes.batch(2000, 32, torch.Generator().manual_seed(99))
    print(f"classifier on fresh drawings: {classifier.accuracy(judge, fresh, labels):.1%}")
    sampling = load_host().sample
    load_pack()
    from priorcache.models.host import load

    model = load(str(args.model))
    out = ROOT / "demo" / "out"
    out.mkdir(exist_ok=True)
    for cfg in args.cfg:
        found, labels = pictures(sampling, model, args.per_class, cfg, args.seed, args.steps)
        right = classifier.accuracy(judge, found, labels)
        by_class = [
            classifier.accuracy(judge, found[labels == i], labels[labels == i]) for i in range(len(shapes.CLASSES))
        ]
        print(f"cfg {cfg:g}: {right:.1%} of {len(found)} pictures named right")
        print("   " + ", ".join(f"{n} {a:.0%}" for n, a in zip(shapes.CLASSES, by_class, strict=True)))
        sheet(found[: 12 * 8], 12).save(out / f"judged-cfg{cfg:g}.png")


if __name__ == "__main__":
    main()
