"""Stable Diffusion 3 and 3.5: MMDiT (arXiv 2403.03206), two streams that meet in attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class SD3Adapter(Adapter):
    architecture = "sd3"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "joint_blocks") == [{"JointBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: tuple(s.attn.proj for s in (b.context_block, b.x_block) if not s.pre_only),
            "attn2": lambda b: b.x_block.attn2.proj if b.x_block.x_block_self_attn else None,
            "txt_mlp": lambda b: None if b.context_block.pre_only else b.context_block.mlp,
            "img_mlp": lambda b: b.x_block.mlp,
        }
        marks = {
            "img_mlp": lambda b: values(b.x_block.attn.qkv, b.x_block.attn.num_heads, 3),
            "txt_mlp": lambda b: values(b.context_block.attn.qkv, b.context_block.attn.num_heads, 3),
        }
        return numbered(network, ("joint_blocks", joint_block, branches, {"values": marks}))

    def lengths(self, network: nn.Module, image: int, text: int) -> tuple[int, int]:
        return image, text + network.register_length

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        txt, img = block.module.context_block, block.module.x_block
        found = {"attn": lambda: ((txt.attn,), (img.attn,)), "attn2": lambda: ((img.attn2,),)}
        return found[name]() if name in found else super().work(block, name)


@returns("context", "x")
def joint_block(
    self: nn.Module,
    branch: Branch,
    context: Tensor,
    x: Tensor,
    c: Tensor,
    transformer_options: dict = NO_OPTIONS,
    use_checkpoint: bool = False,
) -> tuple[Tensor | None, Tensor]:
    from comfy.ldm.modules.attention import optimized_attention
    from comfy.ldm.modules.diffusionmodules.mmdit import gate_cat, modulate

    txt, img = self.context_block, self.x_block

    def modulation(stream: nn.Module) -> tuple[Tensor, ...]:
        return stream.adaLN_modulation(c).unflatten(1, (-1, x.shape[2])).unbind(1)

    txt_shift_a, txt_scale_a, *txt_rest = modulation(txt)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m, *of_attn2 = modulation(img)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return optimized_attention(q, k, v, heads=img.attn.num_heads, transformer_options=transformer_options)

    def joint_attention(x: Tensor) -> Tensor:
        of_txt = txt.attn.pre_attention(modulate(txt.norm1(context), txt_shift_a, txt_scale_a))
        of_img = img.attn.pre_attention(modulate(img.norm1(x), shift_a, scale_a))
        out = attention(*(torch.cat(pair, dim=1) for pair in zip(of_txt, of_img, strict=True)))
        parts = zip((txt, img), out.split((context.shape[1], x.shape[1]), dim=1), strict=True)
        return torch.cat([s.attn.post_attention(part) for s, part in parts if not s.pre_only], dim=1)

    seen = branch("attn", joint_attention, x)
    of_txt, of_img = seen[:, : -x.shape[1]], seen[:, -x.shape[1] :]
    if of_attn2:
        shift_b, scale_b, gate_b = of_attn2

        def image_attention(x: Tensor) -> Tensor:
            out = attention(*img.attn2.pre_attention(modulate(img.norm1(x), shift_b, scale_b)))
            return img.attn2.post_attention(out)

        x = gate_cat(x, gate_a, gate_b, of_img, branch("attn2", image_attention, x))
    else:
        x = x + gate_a.unsqueeze(1) * of_img

    def img_mlp(x: Tensor) -> Tensor:
        return img.mlp(modulate(img.norm2(x), shift_m, scale_m))

    x = x + gate_m.unsqueeze(1) * branch("img_mlp", img_mlp, x, tokenwise=True)
    if txt.pre_only:  # the last block: its text serves the image's attention and ends there
        return None, x
    txt_gate_a, txt_shift_m, txt_scale_m, txt_gate_m = txt_rest

    def txt_mlp(context: Tensor) -> Tensor:
        return txt.mlp(modulate(txt.norm2(context), txt_shift_m, txt_scale_m))

    context = context + txt_gate_a.unsqueeze(1) * of_txt
    context = context + txt_gate_m.unsqueeze(1) * branch("txt_mlp", txt_mlp, context, tokenwise=True)
    return context, x
