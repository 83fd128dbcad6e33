"""Flux (https://github.com/black-forest-labs/flux) and the other networks that the host builds from its blocks.

Those are Flux.2, Chroma, Chroma Radiance, HunyuanVideo (1.5 has no single-stream blocks), HunyuanImage and Hunyuan3D 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class FluxAdapter(Adapter):
    architecture = "flux"

    def matches(self, network: nn.Module) -> bool:
        double, single = kinds(network, "double_blocks", "single_blocks")
        return double == {"DoubleStreamBlock"} and single in ({"SingleStreamBlock"}, set())

    def blocks(self, network: nn.Module) -> list[Block]:
        double = {
            "attn": lambda b: (b.txt_attn.proj, b.img_attn.proj),
            "img_mlp": lambda b: b.img_mlp,
            "txt_mlp": lambda b: b.txt_mlp,
        }
        marks = {
            "img_mlp": lambda b: values(b.img_attn.qkv, b.num_heads, 3),
            "txt_mlp": lambda b: values(b.txt_attn.qkv, b.num_heads, 3),
        }
        single = {"single": lambda b: b.linear2}
        return numbered(
            network,
            ("double_blocks", double_block, double, {"values": marks}),
            ("single_blocks", single_block, single),
        )

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        b = block.module
        found = {"attn": lambda: ((b.txt_attn,), (b.img_attn,)), "single": lambda: ((b.linear1, b.linear2),)}
        return found[name]() if name in found else super().work(block, name)

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        return image + text if name == "single" else super().tokens(block, name, image, text)

    def references(self, network: nn.Module, cond: dict) -> list[Tensor]:
        """With what HunyuanVideo puts before a video that is made of a picture."""
        before = cond.get("ref_latent")
        return [*super().references(network, cond), *([] if before is None else [before])]

    def writes(self, kwargs: dict) -> bool:
        return any(kwargs.get(f"modulation_dims{stream}") is not None for stream in ("", "_img", "_txt"))


@returns("img", "txt", picture="img")
def double_block(
    self: nn.Module,
    branch: Branch,
    img: Tensor,
    txt: Tensor,
    vec: Tensor | tuple,
    pe: Tensor | None,
    attn_mask: Tensor | None = None,
    modulation_dims_img: list | None = None,
    modulation_dims_txt: list | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> tuple[Tensor, Tensor]:
    from comfy.ldm.flux.math import attention

    (img_1, img_2), (txt_1, txt_2) = (self.img_mod(vec), self.txt_mod(vec)) if self.modulation else vec
    img_dims, txt_dims, n = modulation_dims_img, modulation_dims_txt, txt.shape[1]

    def projected(img: Tensor) -> list[Tensor]:
        """q, k and v of both streams; what they are made of is let go, as it is as large."""
        of_txt = heads(self.txt_attn, self.txt_attn.qkv(modulate(self.txt_norm1(txt), txt_1, txt_dims)))
        of_img = heads(self.img_attn, self.img_attn.qkv(modulate(self.img_norm1(img), img_1, img_dims)))
        return [torch.cat(pair, dim=2) for pair in zip(of_txt, of_img, strict=True)]

    def joint(img: Tensor) -> Tensor:
        q, k, v = projected(img)
        out = attention(q, k, v, pe=pe, mask=attn_mask, transformer_options=transformer_options)
        return torch.cat((self.txt_attn.proj(out[:, :n]), self.img_attn.proj(out[:, n:])), dim=1)

    def img_mlp(img: Tensor) -> Tensor:
        return self.img_mlp(modulate(self.img_norm2(img), img_2, img_dims))

    def txt_mlp(txt: Tensor) -> Tensor:
        return self.txt_mlp(modulate(self.txt_norm2(txt), txt_2, txt_dims))

    attn = branch("attn", joint, img)
    img = img + gate(attn[:, n:], img_1, img_dims)
    img = img + gate(branch("img_mlp", img_mlp, img, tokenwise=img_dims is None), img_2, img_dims)
    txt = txt + gate(attn[:, :n], txt_1, txt_dims)
    txt = txt + gate(branch("txt_mlp", txt_mlp, txt, tokenwise=txt_dims is None), txt_2, txt_dims)
    return img, clamp(txt)


@returns("x")
def single_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    vec: Tensor,
    pe: Tensor | None,
    attn_mask: Tensor | None = None,
    modulation_dims: list | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    from comfy.ldm.flux.math import attention

    mod = self.modulation(vec)[0] if self.modulation else vec

    def single(x: Tensor) -> Tensor:
        wide = self.linear1(modulate(self.pre_norm(x), mod, modulation_dims))
        qkv, mlp = wide.split((3 * self.hidden_size, self.mlp_hidden_dim_first), dim=-1)
        q, k, v = heads(self, qkv)
        attn = attention(q, k, v, pe=pe, mask=attn_mask, transformer_options=transformer_options)
        if self.yak_mlp:
            up, through = mlp.chunk(2, dim=-1)
            mlp = self.mlp_act(through) * up
        else:
            mlp = self.mlp_act(mlp)
        return self.linear2(torch.cat((attn, mlp), dim=2))

    return clamp(x + gate(branch("single", single, x), mod, modulation_dims))


def heads(self: nn.Module, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3 * H * D) -> q, k, v, each (B, H, N, D), q and k normed."""
    q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return *self.norm(q, k, v), v


def modulate(x: Tensor, mod, dims: list | None) -> Tensor:
    """Each of dims = (first token, end, which modulation); the host's apply_mod then writes to x, here a norm's output."""
    from comfy.ldm.flux.layers import apply_mod

    return apply_mod(x, 1 + mod.scale, mod.shift, dims)


def gate(out: Tensor, mod, dims: list | None) -> Tensor:
    """As above, but `out` belongs to the cache."""
    from comfy.ldm.flux.layers import apply_mod

    return apply_mod(out if dims is None else out.clone(), mod.gate, None, dims)


def clamp(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x
