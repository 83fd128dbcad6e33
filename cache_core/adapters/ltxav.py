"""LTX-2 (arXiv 2601.03233): a stream of video and one of sound, which attend to each other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..sites import STACK, Site
from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values

HEARD = ("audio_attn", "audio_cross_attn", "video_to_audio_attn", "audio_mlp")
"""Branches of the sound."""


class Lengths(NamedTuple):
    """Tokens of both streams; no sound, no tokens."""

    video: int
    audio: int


class LTXAVAdapter(Adapter):
    """The connectors of the text, which run once before sampling, are left to the host."""

    architecture = "ltxav"
    prefetches = True

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "transformer_blocks") == [{"BasicAVTransformerBlock"}]

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: b.attn1,
            "cross_attn": lambda b: b.attn2,
            "audio_attn": lambda b: b.audio_attn1,
            "audio_cross_attn": lambda b: b.audio_attn2,
            "audio_to_video_attn": lambda b: b.audio_to_video_attn,
            "video_to_audio_attn": lambda b: b.video_to_audio_attn,
            "mlp": lambda b: b.ff,
            "audio_mlp": lambda b: b.audio_ff,
        }
        seen = {name: lambda b: values(b.attn1.to_v, b.attn1.heads) for name in ("cross_attn", "mlp")}
        heard = {f"audio_{name}": lambda b: values(b.audio_attn1.to_v, b.audio_attn1.heads) for name in seen}
        return numbered(network, ("transformer_blocks", av_block, branches, {"values": seen | heard}))

    def rows(self, hidden: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Both streams one after another, in tokens of a width that divides both of theirs."""
        if isinstance(hidden, Tensor):
            return hidden
        width = math.gcd(*(stream.shape[-1] for stream in hidden))
        return torch.cat([stream.unflatten(-1, (-1, width)).flatten(1, 2) for stream in hidden], dim=1)

    def hidden(self, rows: Tensor, like: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        lengths = [stream[0].numel() // rows.shape[-1] for stream in like]
        return tuple(part.reshape(stream.shape) for part, stream in zip(rows.split(lengths, dim=1), like, strict=True))

    def references(self, network: nn.Module, cond: dict) -> list[Tensor]:
        sound = cond.get("ref_audio")
        return [sound["tokens"]] if sound else []

    def image(self, network: nn.Module, latents: list[tuple[int, ...]]) -> Lengths:
        """A sound is (C, T, frequencies), a reference of it (T, C)."""
        video = sum(self.patches(network, latent) for latent in latents if len(latent) == 4)
        return Lengths(video, sum(latent[-2] for latent in latents if len(latent) < 4))

    def sizes(self, network: nn.Module, latents: list[tuple[int, ...]], text: int) -> dict[Site, tuple[int, int]]:
        widths, lengths = (network.inner_dim, network.audio_inner_dim), self.image(network, latents)
        width = math.gcd(*widths)
        both = sum(length * wide // width for length, wide in zip(lengths, widths, strict=True))
        return super().sizes(network, latents, text) | {STACK: (both, width)}

    def tokens(self, block: Block, name: str, image: Lengths, text: int) -> int:
        if name in HEARD or (name == "audio_to_video_attn" and not image.audio):
            return image.audio
        return image.video

    def keys(self, name: str, image: Lengths, text: int) -> int | None:
        across = {"audio_to_video_attn": image.audio, "video_to_audio_attn": image.video}
        return ({"cross_attn": text, "audio_cross_attn": text} | across).get(name)

    def attended(self, block: Block, name: str) -> int:
        (module,) = block.captures[name]
        return module.heads * module.dim_head if name.endswith("attn") else super().attended(block, name)


class Stream(NamedTuple):
    """What one of the two streams has of its own; the block's modules for it have names with this prefix."""

    prefix: str
    context: Tensor
    timestep: object
    prompt_timestep: Tensor | None
    pe: tuple
    cross_table: Tensor
    cross_timestep: object
    gate_timestep: object


@returns("x")
def av_block(
    self: nn.Module,
    branch: Branch,
    x: tuple[Tensor, Tensor],
    v_context: Tensor | None = None,
    a_context: Tensor | None = None,
    attention_mask: Tensor | None = None,
    v_timestep: object = None,
    a_timestep: Tensor | None = None,
    v_pe: tuple | None = None,
    a_pe: tuple | None = None,
    v_cross_pe: tuple | None = None,
    a_cross_pe: tuple | None = None,
    v_cross_scale_shift_timestep: object = None,
    a_cross_scale_shift_timestep: Tensor | None = None,
    v_cross_gate_timestep: object = None,
    a_cross_gate_timestep: Tensor | None = None,
    transformer_options: dict = NO_OPTIONS,
    self_attention_mask: object = None,
    v_prompt_timestep: Tensor | None = None,
    a_prompt_timestep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from comfy.ldm.common_dit import rms_norm
    from comfy.ldm.lightricks.model import apply_cross_attention_adaln

    options, (vx, ax) = transformer_options, x
    run_vx, sounds = options.get("run_vx", True), ax.numel() > 0
    run_ax = sounds and options.get("run_ax", True)
    run_a2v = run_vx and sounds and options.get("a2v_cross_attn", True)
    run_v2a = run_ax and options.get("v2a_cross_attn", True)
    one_text = attention_mask is None or attention_mask.shape[-2] == 1  # else each token sees its own words
    video = Stream(
        "", v_context, v_timestep, v_prompt_timestep, v_pe,
        self.scale_shift_table_a2v_ca_video, v_cross_scale_shift_timestep, v_cross_gate_timestep,
    )  # fmt: skip
    audio = Stream(
        "audio_", a_context, a_timestep, a_prompt_timestep, a_pe,
        self.scale_shift_table_a2v_ca_audio, a_cross_scale_shift_timestep, a_cross_gate_timestep,
    )  # fmt: skip

    def part(of: Stream, name: str) -> nn.Module | Tensor:
        return getattr(self, of.prefix + name)

    def modulation(of: Stream, first: int, last: int) -> tuple[Tensor, ...]:
        """Each (B, 1 or N, D), made when it is needed: of a video with a noise level per frame it is large."""
        return self.get_ada_values(part(of, "scale_shift_table"), len(vx), of.timestep, slice(first, last))

    def cross_modulated(of: Stream, x: Tensor, first: int) -> Tensor:
        places = slice(first, first + 2)
        scale, shift = self.get_ada_values(of.cross_table[:4], len(x), of.cross_timestep, places)
        return rms_norm(x) * (1 + scale) + shift

    def cross_gate(of: Stream) -> Tensor:
        return self.get_ada_values(of.cross_table[4:], len(vx), of.gate_timestep)[0]

    def attending(of: Stream, x: Tensor, mask: object = None) -> Tensor:
        def attention(x: Tensor) -> Tensor:
            shift, scale = modulation(of, 0, 2)
            x = rms_norm(x) * (1 + scale) + shift
            return part(of, "attn1")(x, pe=of.pe, mask=mask, transformer_options=options)

        def cross_attention(x: Tensor) -> Tensor:
            attn2 = part(of, "attn2")
            if not self.cross_attention_adaln:
                return attn2(rms_norm(x), context=of.context, mask=attention_mask, transformer_options=options)
            of_text = part(of, "prompt_scale_shift_table"), of.prompt_timestep, attention_mask, options
            return apply_cross_attention_adaln(x, of.context, attn2, *modulation(of, 6, 8), 1, *of_text)

        (gate,) = modulation(of, 2, 3)
        alike = gate.shape[1] == 1 or not self.cross_attention_adaln  # else each token has its own noise level
        x = torch.addcmul(x, branch(f"{of.prefix}attn", attention, x), gate)
        seen = branch(f"{of.prefix}cross_attn", cross_attention, x, tokenwise=one_text and alike)
        return x + (modulation(of, 8, 9)[0] * seen if self.cross_attention_adaln else seen)

    def feeding(of: Stream, x: Tensor) -> Tensor:
        def mlp(x: Tensor) -> Tensor:
            shift, scale = modulation(of, 3, 5)
            return part(of, "ff")(rms_norm(x) * (1 + scale) + shift)

        (gate,) = modulation(of, 5, 6)
        return torch.addcmul(x, branch(f"{of.prefix}mlp", mlp, x, tokenwise=gate.shape[1] == 1), gate)

    if run_vx:
        vx = attending(video, vx, self_attention_mask)
    if run_ax:
        ax = attending(audio, ax)
    seen, heard = vx, ax  # each attends to the other as it is here

    def audio_to_video(x: Tensor) -> Tensor:
        q, kv = cross_modulated(video, x, 0), cross_modulated(audio, heard, 0)
        return self.audio_to_video_attn(q, context=kv, pe=v_cross_pe, k_pe=a_cross_pe, transformer_options=options)

    def video_to_audio(x: Tensor) -> Tensor:
        q, kv = cross_modulated(audio, x, 2), cross_modulated(video, seen, 2)
        return self.video_to_audio_attn(q, context=kv, pe=a_cross_pe, k_pe=v_cross_pe, transformer_options=options)

    if run_a2v:
        vx = torch.addcmul(vx, branch("audio_to_video_attn", audio_to_video, vx), cross_gate(video))
    if run_v2a:
        ax = torch.addcmul(ax, branch("video_to_audio_attn", video_to_audio, ax), cross_gate(audio))
    if run_vx:
        vx = feeding(video, vx)
    if run_ax:
        ax = feeding(audio, ax)
    return vx, ax
