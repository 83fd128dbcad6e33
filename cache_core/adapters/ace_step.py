"""ACE-Step (arXiv 2506.00045): music by linear attention, cross-attention to tags and lyrics, and an MLP with a convolution."""

from __future__ import annotations

from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns


class Music(Adapter):
    """What both ACE-Steps have in common."""

    def text(self, cond: dict) -> int:
        lyrics = cond.get("conditioning_lyrics")
        return super().text(cond) + (0 if lyrics is None else lyrics.shape[1])

    def lengths(self, network: nn.Module, image: int, text: int) -> tuple[int, int]:
        return image, text + 1  # the speaker, or the timbre


class AceStepAdapter(Music):
    """No branch may be called with fewer tokens: cross-attention knows their places, and the MLP sees their neighbours."""

    architecture = "ace_step"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "transformer_blocks") == [{"LinearTransformerBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {"attn": lambda b: b.attn.to_out[0], "cross_attn": lambda b: b.cross_attn, "mlp": lambda b: b.ff}
        return numbered(network, ("transformer_blocks", linear_transformer_block, branches))

    def _flops(self, block: Block, name: str, image: int, text: int) -> int:
        b = block.module
        if name == "mlp":
            convs = (layer.conv for layer in (b.ff.inverted_conv, b.ff.depth_conv, b.ff.point_conv))
            return 2 * image * sum(c.in_channels * c.out_channels * c.kernel_size[0] // c.groups for c in convs)
        a, keys = (b.attn, image) if name == "attn" else (b.cross_attn, text)
        lengths = {a.to_q: image, a.to_k: keys, a.to_v: keys, a.to_out[0]: image}
        linear = sum(layer.in_features * layer.out_features * length for layer, length in lengths.items())
        # Linear attention meets, for every token, a matrix of a head's channels and one row that counts.
        met = a.inner_dim // a.heads + 1 if name == "attn" else text
        return 2 * (linear + 2 * image * met * a.inner_dim)


@returns("hidden_states")
def linear_transformer_block(
    self: nn.Module,
    branch: Branch,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    rotary_freqs_cis: tuple[Tensor, Tensor] | None = None,
    rotary_freqs_cis_cross: tuple[Tensor, Tensor] | None = None,
    temb: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
) -> Tensor:
    from comfy.model_management import cast_to

    x, table = hidden_states, cast_to(self.scale_shift_table[None], dtype=temb.dtype, device=temb.device)  # (1, 6, D)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (table + temb.unflatten(1, (6, -1))).chunk(6, dim=1)
    given = {
        "attention_mask": attention_mask,
        "rotary_freqs_cis": rotary_freqs_cis,
        "transformer_options": transformer_options,
    }

    def attention(x: Tensor) -> Tensor:
        return self.attn(self.norm1(x) * (1 + scale_a) + shift_a, **given)[0]

    def cross_attention(x: Tensor) -> Tensor:
        return self.cross_attn(
            x,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            rotary_freqs_cis_cross=rotary_freqs_cis_cross,
            **given,
        )

    def mlp(x: Tensor) -> Tensor:
        return self.ff(self.norm2(x) * (1 + scale_m) + shift_m)

    # The host clips behind what is noted. A sum lies in memory as its first part does, here and in the host.
    x = gate_a * branch("attn", attention, x).clip(-65504, 65504) + x
    x = branch("cross_attn", cross_attention, x) + x
    return x + gate_m * branch("mlp", mlp, x)
