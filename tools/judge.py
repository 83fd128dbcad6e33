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

SAMPLERS = {"dit": ("ddim", "ddim_uniform"), "pixart": ("ddim", "ddim_uniform"), "flux": ("euler", "simple")}


def weights(kind: str) -> Path:
    """Of a demo model, as shipped."""
    return ROOT / "demo" / f"shapes-{kind}.safetensors"


class Drawer:
    """A demo model in the host, and how it is told what to draw."""

    def __init__(self, kind: str, file: Path):
        from priorcache.models import host, pixart, words
        from priorcache.nodes import demo, dit

        self.kind, self.words = kind, words
        self.conditioning = demo.conditioning
        if kind == "dit":
            self.model, self.side, self.conditioning = host.load(str(file)), 32, dit.conditioning
        elif kind == "pixart":
            self.model, self.side = pixart.load(str(file)), 40
        else:
            self.model, self.side = load_host().sd.load_diffusion_model(str(file)), 32

    def latent(self, count: int) -> torch.Tensor:
        return torch.zeros(count, 16, 16, 16) if self.kind == "flux" else torch.zeros(count, 3, self.side, self.side)

    def told(self, labels: torch.Tensor, seed: int):
        """(positive, negative) for these shapes; models that read words get colours too, another ground than shape."""
        if self.kind == "dit":
            return self.conditioning(labels), self.conditioning(torch.full_like(labels, -1))
        prompts = self.captions(labels, seed)
        return self.conditioning(prompts), self.conditioning([""] * len(labels))

    def captions(self, labels: torch.Tensor, seed: int) -> list[str]:
        """Prompts for these shapes, in colours drawn at random."""
        generator = torch.Generator().manual_seed(seed)
        colours = [torch.randperm(len(self.words.COLOURS), generator=generator)[:2].tolist() for _ in labels]
        return [
            f"{self.words.COLOURS[own]} {self.words.SHAPES[label]} on {self.words.COLOURS[ground]}"
            for label, (own, ground) in zip(labels.tolist(), colours, strict=True)
        ]

    def pictures(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples -> (B, 3, 32, 32) in [-1, 1], as the classifier sees them."""
        if self.kind == "flux":
            samples = self.words.FoldedPixels().decode(samples).movedim(-1, 1) * 2 - 1
        return torch.nn.functional.interpolate(samples, 32, mode="area") if self.side != 32 else samples

    def draw(self, count: int, cfg: float, seed: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` pictures per class and their labels."""
        sampling = load_host().sample
        labels = torch.arange(len(shapes.CLASSES)).repeat(count)
        latent = self.latent(len(labels))
        out = sampling.sample(
            self.model, sampling.prepare_noise(latent, seed), steps, cfg, *SAMPLERS[self.kind], *self.told(labels, seed),
            latent, disable_pbar=True, seed=seed,
        )  # fmt: skip
        return self.pictures(out), labels


def sheet(images: torch.Tensor, columns: int) -> Image.Image:
    rows = (images.clamp(-1, 1) + 1).mul(127.5).round().byte().repeat_interleave(3, 2).repeat_interleave(3, 3)
    rows = torch.nn.functional.pad(rows, (2, 2, 2, 2), value=255)
    lines = [torch.cat(list(part), dim=2) for part in rows.split(columns)]
    return Image.fromarray(torch.cat(lines, dim=1).permute(1, 2, 0).numpy())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=SAMPLERS, default="dit", help="which demo model")
    parser.add_argument("--train", action="store_true", help="train the classifier first")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--model", type=Path, help="other weights than those of the demo")
    parser.add_argument("--gpu", action="store_true", help="sample on the device that ComfyUI prefers")
    args = parser.parse_args()
    if args.train:
        with torch.inference_mode(False), torch.enable_grad():
            classifier.save(classifier.train())
    judge = classifier.load()
    fresh, labels = shapes.batch(2000, 32, torch.Generator().manual_seed(99))
    print(f"classifier on fresh drawings: {classifier.accuracy(judge, fresh, labels):.1%}")
    load_host(cpu=not args.gpu)
    load_pack()
    drawer = Drawer(args.kind, args.model or weights(args.kind))
    out = ROOT / "demo" / "out"
    out.mkdir(exist_ok=True)
    for cfg in args.cfg:
        found, labels = drawer.draw(args.per_class, cfg, args.seed, args.steps)
        right = classifier.accuracy(judge, found, labels)
        by_class = [
            classifier.accuracy(judge, found[labels == i], labels[labels == i]) for i in range(len(shapes.CLASSES))
        ]
        print(f"cfg {cfg:g}: {right:.1%} of {len(found)} pictures named right")
        print("   " + ", ".join(f"{n} {a:.0%}" for n, a in zip(shapes.CLASSES, by_class, strict=True)))
        sheet(found[: 12 * 8], 12).save(out / f"judged-{args.kind}-cfg{cfg:g}.png")


if __name__ == "__main__":
    main()
