"""HiDream-I1 (arXiv 2505.22705) and E1: blocks of two streams, then of one, whose MLP is a mixture of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class HiDreamAdapter(Adapter):
    """A block's text is T5's, Llama's last layer and a layer of its own: told as three of T5's length."""

    architecture = "hidream"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "double_stream_blocks", "single_stream_blocks") == [{"HiDreamImageBlock"}] * 2

    def lengths(self, network: nn.Module, image: int, text: int) -> tuple[int, int]:
        return image, 3 * text

    def references(self, network: nn.Module, cond: dict) -> list[Tensor]:
        """The picture that E1 is given is laid beside its own."""
        return [cond["concat_latent_image"]] if "concat_latent_image" in cond else []

    def tokens(self, block: Block, name: str, image: int, text: int) -> int:
        joined = block.sites[name].name.startswith("single_stream_blocks")
        return image + text if joined else super().tokens(block, name, image, text)

    def blocks(self, network: nn.Module) -> list[Block]:
        double = {
            "attn": lambda b: (b.block.attn1.to_out_t, b.block.attn1.to_out),
            "img_mlp": lambda b: b.block.ff_i,
            "txt_mlp": lambda b: b.block.ff_t,
        }
        single = {"attn": lambda b: b.block.attn1, "mlp": lambda b: b.block.ff_i}
        of_double = {
            "img_mlp": lambda b: values(b.block.attn1.to_v, b.block.attn1.heads),
            "txt_mlp": lambda b: values(b.block.attn1.to_v_t, b.block.attn1.heads),
        }
        of_single = {"mlp": lambda b: values(b.block.attn1.to_v, b.block.attn1.heads)}
        return numbered(
            network,
            ("double_stream_blocks", double_block, double, {"values": of_double}),
            ("single_stream_blocks", single_block, single, {"values": of_single}),
        )

    def work(self, block: Block, name: str) -> tuple[tuple[nn.Module, ...], ...]:
        a, experts = block.module.block.attn1, block.module.block.ff_i
        if name == "attn" and not a.single:
            return (a.to_q_t, a.to_k_t, a.to_v_t, a.to_out_t), (a.to_q, a.to_k, a.to_v, a.to_out)
        if name in ("img_mlp", "mlp") and hasattr(experts, "experts"):  # a token passes some of them
            return ((experts.shared_experts, *experts.experts[: experts.num_activated_experts]),)
        return super().work(block, name)


@returns("image_tokens", "text_tokens", picture="image_tokens")
def double_block(
    self: nn.Module,
    branch: Branch,
    image_tokens: Tensor,
    image_tokens_masks: Tensor | None = None,
    text_tokens: Tensor | None = None,
    adaln_input: Tensor | None = None,
    rope: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> tuple[Tensor, Tensor]:
    b, img, txt = self.block, image_tokens, text_tokens
    of_img, of_txt = b.adaLN_modulation(adaln_input).unsqueeze(1).chunk(2, dim=-1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = of_img.chunk(6, dim=-1)
    txt_shift_a, txt_scale_a, txt_gate_a, txt_shift_m, txt_scale_m, txt_gate_m = of_txt.chunk(6, dim=-1)

    def attention(img: Tensor) -> Tensor:
        of_img, of_txt = b.attn1(
            b.norm1_i(img) * (1 + scale_a) + shift_a,
            image_tokens_masks,
            b.norm1_t(txt) * (1 + txt_scale_a) + txt_shift_a,
            rope=rope,
            transformer_options=transformer_options,
        )
        return torch.cat((of_txt, of_img), dim=1)

    def img_mlp(img: Tensor) -> Tensor:
        return b.ff_i(b.norm3_i(img) * (1 + scale_m) + shift_m)

    def txt_mlp(txt: Tensor) -> Tensor:
        return b.ff_t(b.norm3_t(txt) * (1 + txt_scale_m) + txt_shift_m)

    txt_seen, img_seen = branch("attn", attention, img).split((txt.shape[1], img.shape[1]), dim=1)
    img = img + gate_a * img_seen
    txt = txt + txt_gate_a * txt_seen
    img = img + gate_m * branch("img_mlp", img_mlp, img, tokenwise=True)
    txt = txt + txt_gate_m * branch("txt_mlp", txt_mlp, txt, tokenwise=True)
    return img, txt


@returns("image_tokens")
def single_block(
    self: nn.Module,
    branch: Branch,
    image_tokens: Tensor,
    image_tokens_masks: Tensor | None = None,
    text_tokens: Tensor | None = None,
    adaln_input: Tensor | None = None,
    rope: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    b, x = self.block, image_tokens  # the text stands behind the picture
    modulation = b.adaLN_modulation(adaln_input).unsqueeze(1).chunk(6, dim=-1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation

    def attention(x: Tensor) -> Tensor:
        x = b.norm1_i(x) * (1 + scale_a) + shift_a
        return b.attn1(x, image_tokens_masks, rope=rope, transformer_options=transformer_options)

    def mlp(x: Tensor) -> Tensor:
        return b.ff_i(b.norm3_i(x) * (1 + scale_m) + shift_m)

    x = x + gate_a * branch("attn", attention, x)
    return x + gate_m * branch("mlp", mlp, x, tokenwise=True)
