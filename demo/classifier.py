"""A small classifier of the demo shapes: the judge of the demo model, and the feature space of its Frechet distances.

python tools/dev.py judge --train       # train it again, about two minutes on two CPU cores
python tools/dev.py judge               # sample the demo model in ComfyUI and let the classifier name the pictures
"""

from __future__ import annotations

import itertools
from pathlib import Path

import shapes
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = Path(__file__).parent / "shapes-classifier.safetensors"


class Classifier(nn.Module):
    """Pictures (B, 3, 32, 32) in [-1, 1] -> logits (B, classes); `features` gives the (B, 128) before the last layer."""

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 128)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.mix = nn.Linear(128 * 16, 128)
        self.head = nn.Linear(128, len(shapes.CLASSES))

    def features(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        return F.gelu(self.mix(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train(steps: int = 1500, batch: int = 128, seed: int = 0) -> Classifier:
    """Trains on clean pictures with a little noise, so that it judges shapes and not single pixels."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        x, y = shapes.batch(batch, 32, generator)
        x = x + 0.1 * torch.rand(batch, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)
    return model.eval()


@torch.inference_mode()
def accuracy(model: Classifier, pictures: Tensor, labels: Tensor) -> float:
    """Share of pictures (B, 3, 32, 32) that the classifier gives the name they should have."""
    return (model(pictures.clamp(-1, 1)).argmax(1) == labels).float().mean().item()


def save(model: Classifier) -> None:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, FILE)


def load() -> Classifier:
    model = Classifier()
    model.load_state_dict(load_file(FILE))
    return model.eval()
