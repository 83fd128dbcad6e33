"""The class-conditional demo model: this pack's own DiT, velocity prediction (arXiv 2202.00512) on linear betas."""

from __future__ import annotations

import json
from argparse import Namespace

import shapes
import torch
from pack import load_pack
from torch import Tensor, nn

STEPS = 1000
SIZE = 32


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H * D): at some 64 tokens this is faster backwards than the fused CPU kernel."""
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return written_out(*(u.unflatten(2, (heads, -1)).transpose(1, 2) for u in (q, k, v)))


def velocity(pictures: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(noisy pictures, what the network is told of t, what it is to predict) at t in [0, 1), on 1000 linear betas."""
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0).float()
    index = t.mul(STEPS).long()
    a = signal[index][:, None, None, None]
    # The velocity is the noise at clean steps and minus the picture at noisy ones: nothing to divide by the signal.
    return a.sqrt() * pictures + (1 - a).sqrt() * noise, index, a.sqrt() * noise - (1 - a).sqrt() * pictures


class Recipe:
    file = "shapes-dit.safetensors"
    zeroed = ("adaLN_modulation.1", "final_layer.linear")
    small = ("y_embedder", "t_embedder")

    def __init__(self, args: Namespace):
        load_pack()
        from priorcache.models.dit import DiT, DiTConfig, sincos_positions

        self.config = DiTConfig(
            hidden_size=args.hidden, depth=args.depth[0], num_heads=args.hidden // 64, patch_size=4, in_channels=3,
            num_classes=len(shapes.CLASSES), learn_sigma=False, grid_size=SIZE // 4, prediction="v_prediction",
        )  # fmt: skip
        self.network = DiT(self.config, attention=attention)
        self.positions = sincos_positions(args.hidden, SIZE // 4, SIZE // 4)

    def initialised(self) -> nn.Module:
        self.network.pos_embed.data.copy_(self.positions)
        return self.network

    @staticmethod
    def hidden(name: str) -> bool:
        """Whether a matrix belongs to Muon."""
        return name.startswith("blocks") and "adaLN" not in name

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pictures, labels = shapes.batch(count, SIZE, generator)
        labels[torch.rand(count, generator=generator) < 0.1] = len(shapes.CLASSES)
        return pictures, {"y": labels}

    def noised(self, pictures: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return velocity(pictures, noise, t)

    def stored(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights under the names that files carry."""
        return weights

    def loaded(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a file under the names of the network."""
        return weights

    def metadata(self) -> dict[str, str]:
        """What no tensor shape tells."""
        return {
            "num_heads": str(self.config.num_heads),
            "prediction_type": self.config.prediction,
            "classes": json.dumps(shapes.CLASSES),
        }

    def description(self) -> dict:
        return self.config.as_dict()
