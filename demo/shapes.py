"""An unlimited data set of coloured shapes: signed distance functions, anti-aliased, drawn on the fly in batches.

Every image is one shape of `CLASSES` with random position, size, tilt and hue on a softly shaded background of another
hue. Pictures are (B, 3, size, size) in [-1, 1]; labels are (B,) int64 indices into `CLASSES`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLASSES = (
    "circle", "ring", "half disc", "crescent", "triangle", "square",
    "diamond", "star", "plus", "cross", "heart", "arrow",
)  # fmt: skip


def disc(p: Tensor, radius: float, x: float = 0.0, y: float = 0.0) -> Tensor:
    return torch.hypot(p[..., 0] - x, p[..., 1] - y) - radius


def polygon(p: Tensor, vertices: list[tuple[float, float]]) -> Tensor:
    """Signed distance from points (..., 2) to a closed polygon, negative inside (even-odd rule)."""
    v = torch.tensor(vertices, dtype=p.dtype)
    distance = torch.full(p.shape[:-1], math.inf)
    inside = torch.zeros(p.shape[:-1], dtype=torch.bool)
    for a, b in zip(v, v.roll(-1, 0), strict=True):
        edge, to_point = b - a, p - a
        along = ((to_point * edge).sum(-1) / edge.dot(edge)).clamp(0, 1)
        distance = torch.minimum(distance, (to_point - along[..., None] * edge).norm(dim=-1))
        crosses = (a[1] > p[..., 1]) != (b[1] > p[..., 1])
        rise = torch.where(edge[1] == 0, torch.ones(()), edge[1])
        inside ^= crosses & (p[..., 0] < edge[0] * (p[..., 1] - a[1]) / rise + a[0])
    return torch.where(inside, -distance, distance)


def regular(n: int, radius: float = 1.0, inner: float | None = None) -> list[tuple[float, float]]:
    """A regular n-gon, or an n-pointed star when `inner` is given; first vertex up (y points down)."""
    radii = [radius] if inner is None else [radius, inner]
    count = n * len(radii)
    corners = ((radii[i % len(radii)], 2 * math.pi * i / count) for i in range(count))
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in corners]


def turned(vertices: list[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    c, s = math.cos(angle), math.sin(angle)
    return [(c * x - s * y, s * x + c * y) for x, y in vertices]


PLUS = [(.34, -1), (.34, -.34), (1, -.34), (1, .34), (.34, .34), (.34, 1),
        (-.34, 1), (-.34, .34), (-1, .34), (-1, -.34), (-.34, -.34), (-.34, -1)]  # fmt: skip
ARROW = [(1, 0), (.1, -.85), (.1, -.34), (-1, -.34), (-1, .34), (.1, .34), (.1, .85)]  # fmt: skip
HEART = [
    (16 * math.sin(a) ** 3 / 17, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 17)
    for a in (2 * math.pi * i / 40 for i in range(40))
]


def distance(name: str, p: Tensor) -> Tensor:
    """Signed distance (...) of unit-sized shape `name` at points p (..., 2)."""
    match name:
        case "circle":
            return disc(p, 0.95)
        case "ring":
            return disc(p, 0.78).abs() - 0.22
        case "half disc":
            return torch.maximum(disc(p, 1.0, y=-0.4), -(p[..., 1] + 0.4))
        case "crescent":
            return torch.maximum(disc(p, 1.0), -disc(p, 0.85, x=0.5))
        case "triangle":
            return polygon(p, [(x, y + 0.2) for x, y in regular(3, 1.15)])
        case "square":
            return polygon(p, turned(regular(4, 1.2), math.pi / 4))
        case "diamond":
            return polygon(p, [(0.72 * x, 1.1 * y) for x, y in regular(4)])
        case "star":
            return polygon(p, regular(5, 1.1, 0.44))
        case "plus":
            return polygon(p, PLUS)
        case "cross":
            return polygon(p, turned(PLUS, math.pi / 4))
        case "heart":
            return polygon(p, HEART)
        case "arrow":
            return polygon(p, ARROW)
    raise ValueError(f"no shape is called {name!r}; there are {', '.join(CLASSES)}")


def colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV (B,) each in [0, 1] to RGB (B, 3)."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def render(labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One random picture (B, 3, size, size) in [-1, 1] per label (B,), and the hues (B,) of shapes and grounds."""
    n = len(labels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    radius = uniform(0.56, 0.78)
    room = 0.94 - radius
    centre = torch.stack((uniform(-1, 1) * room, uniform(-1, 1) * room), dim=-1)
    tilt = uniform(-0.2, 0.2)
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    pixels = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
    p = (pixels[None] - centre[:, None, None]) / radius[:, None, None, None]
    c, s = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    p = torch.stack((c * p[..., 0] + s * p[..., 1], c * p[..., 1] - s * p[..., 0]), dim=-1)
    signed = torch.empty(n, size, size)
    for index in labels.unique().tolist():
        rows = (labels == index).nonzero().squeeze(1)
        signed[rows] = distance(CLASSES[index], p[rows])
    cover = (0.5 - signed * radius[:, None, None] * size / 2).clamp(0, 1)[:, None]

    hue = uniform(0, 1)
    shape = colour(hue, uniform(0.65, 1.0), uniform(0.8, 1.0))
    ground_hue = (hue + uniform(0.25, 0.75)) % 1
    ground = colour(ground_hue, uniform(0.25, 0.7), uniform(0.2, 0.65))
    slope = torch.stack((uniform(-1, 1), uniform(-1, 1)), dim=-1)
    shade = 1 + 0.25 * torch.einsum("hwk,nk->nhw", pixels, slope)[:, None]
    picture = cover * shape[:, :, None, None] + (1 - cover) * (ground[:, :, None, None] * shade)
    return picture.clamp(0, 1) * 2 - 1, hue, ground_hue


def batch(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` random pictures and their labels."""
    labels = torch.randint(len(CLASSES), (count,), generator=generator)
    return render(labels, size, generator)[0], labels
