"""The class-conditional diffusion transformer of "Scalable Diffusion Models with Transformers" (arXiv 2212.09748).

The module tree carries the paper's original parameter names, so that published checkpoints load as they are. Layers
come from `operations`: `torch.nn` for training, the host's own classes inside ComfyUI (casting, low VRAM, LoRA).
Shapes: x (B, C, H, W), t (B,), y (B,); tokens (B, N, D) with N = (H / p) * (W / p).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DiTConfig:
    """Everything that fixes a DiT's architecture; `models/checkpoint.py` reads it from a file."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    in_channels: int
    num_classes: int
    learn_sigma: bool
    grid_size: int | None = None  # tokens per side at training resolution, where the file tells
    frequency_shift: float = 0.0  # 0: the paper's code, 1: diffusers' own timestep frequencies
    prediction: str = "epsilon"  # the paper's noise prediction, or "v_prediction" (arXiv 2202.00512)

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    def as_dict(self) -> dict:
        return asdict(self)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D), shift and scale (B, 1, D)."""
    return x * (1 + scale) + shift


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention over (B, N, D) tensors by PyTorch's fused kernel."""
    q, k, v = (u.unflatten(2, (heads, -1)).transpose(1, 2) for u in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def timestep_frequencies(t: Tensor, dim: int, shift: float) -> Tensor:
    """Sinusoidal embedding (B, dim) of t (B,), cosines first, in float32."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - shift))
    angles = t.float()[:, None] * freqs[None]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def sincos_positions(dim: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Fixed 2-D sine-cosine position embedding (1, height * width, dim); the first half encodes the column."""

    def encode(positions: Tensor) -> Tensor:
        omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim / 4))
        angles = positions.double()[:, None] * omega[None]
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.cat((encode(columns.flatten()), encode(rows.flatten())), dim=1).float()[None]


class PatchEmbed(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        p = config.patch_size
        self.proj = operations.Conv2d(config.in_channels, config.hidden_size, kernel_size=p, stride=p, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    frequencies = 256

    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        d = config.hidden_size
        self.shift = config.frequency_shift
        self.mlp = nn.Sequential(operations.Linear(self.frequencies, d, **kw), nn.SiLU(), operations.Linear(d, d, **kw))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(timestep_frequencies(t, self.frequencies, self.shift).to(dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        self.embedding_table = operations.Embedding(config.num_classes + 1, config.hidden_size, **kw)

    def forward(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return self.embedding_table(y).to(dtype)


class Attention(nn.Module):
    def __init__(self, config: DiTConfig, operations, attention, **kw):
        super().__init__()
        self.num_heads, self.attention = config.num_heads, attention
        self.qkv = operations.Linear(config.hidden_size, 3 * config.hidden_size, **kw)
        self.proj = operations.Linear(config.hidden_size, config.hidden_size, **kw)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(self.attention(q, k, v, self.num_heads))


class Mlp(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        self.fc1 = operations.Linear(config.hidden_size, 4 * config.hidden_size, **kw)
        self.fc2 = operations.Linear(4 * config.hidden_size, config.hidden_size, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """x += gate * attn(mod(norm(x))); x += gate * mlp(mod(norm(x))), modulated by c (adaLN-Zero)."""

    def __init__(self, config: DiTConfig, operations, attention, **kw):
        super().__init__()
        d = config.hidden_size
        self.norm1 = operations.LayerNorm(d, elementwise_affine=False, eps=1e-6, **kw)
        self.attn = Attention(config, operations, attention, **kw)
        self.norm2 = operations.LayerNorm(d, elementwise_affine=False, eps=1e-6, **kw)
        self.mlp = Mlp(config, operations, **kw)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(d, 6 * d, **kw))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = torch.addcmul(x, gate_a, self.attn(modulate(self.norm1(x), shift_a, scale_a)))
        return torch.addcmul(x, gate_m, self.mlp(modulate(self.norm2(x), shift_m, scale_m)))


class FinalLayer(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        d, p = config.hidden_size, config.patch_size
        self.norm_final = operations.LayerNorm(d, elementwise_affine=False, eps=1e-6, **kw)
        self.linear = operations.Linear(d, p * p * config.out_channels, **kw)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(d, 2 * d, **kw))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Class-conditional DiT; returns the predicted noise or velocity (B, C, H, W), learned variances are cut off.

    `attention(q, k, v, heads)` takes and returns (B, N, D). Label `num_classes` is the null class of guidance.
    """

    def __init__(self, config: DiTConfig, operations=nn, attention=sdpa, dtype=None, device=None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.config, self.patch_size, self.dtype = config, config.patch_size, dtype
        self.x_embedder = PatchEmbed(config, operations, **kw)
        self.t_embedder = TimestepEmbedder(config, operations, **kw)
        self.y_embedder = LabelEmbedder(config, operations, **kw)
        if config.grid_size:
            tokens = config.grid_size**2
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, config.hidden_size, **kw), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(config, operations, attention, **kw) for _ in range(config.depth))
        self.final_layer = FinalLayer(config, operations, **kw)

    def positions(self, height: int, width: int, x: Tensor) -> Tensor:
        """The file's own embedding at the training grid, the paper's formula at every other."""
        if height == width == self.config.grid_size:
            return self.pos_embed.to(device=x.device, dtype=x.dtype)
        return sincos_positions(self.config.hidden_size, height, width, x.device).to(x.dtype)

    def unpatchify(self, x: Tensor, height: int, width: int) -> Tensor:
        p = self.config.patch_size
        x = x.unflatten(2, (p, p, -1)).unflatten(1, (height, width))  # B h w p q C
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], -1, height * p, width * p)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None, **_) -> Tensor:
        p, c = self.config.patch_size, self.config.in_channels
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % p, 0, -height % p), mode="circular")
        rows, columns = x.shape[-2] // p, x.shape[-1] // p
        tokens = self.x_embedder(x)
        tokens = tokens + self.positions(rows, columns, tokens)
        cond = self.t_embedder(t, x.dtype) + self.y_embedder(y, x.dtype)
        for block in self.blocks:
            tokens = block(tokens, cond)
        out = self.unpatchify(self.final_layer(tokens, cond), rows, columns)
        return out[:, :c, :height, :width]
