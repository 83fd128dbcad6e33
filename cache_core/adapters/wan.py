"""Wan (arXiv 2503.20314), the 2.x video family with all variants that the host builds from its attention block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import NO_OPTIONS, Adapter, Block, Branch, kinds, numbered, returns
from .marks import values


class WanAdapter(Adapter):
    """VACE's own control blocks, which may run several times in one forward, are left to the host."""

    architecture = "wan"

    def matches(self, network: nn.Module) -> bool:
        return kinds(network, "blocks") in ([{"WanAttentionBlock"}], [{"WanAttentionBlockAudio"}])

    def blocks(self, network: nn.Module) -> list[Block]:
        branches = {
            "attn": lambda b: b.self_attn,
            "cross_attn": lambda b: b.cross_attn,
            "audio_attn": lambda b: getattr(getattr(b, "audio_cross_attn_wrapper", None), "audio_cross_attn", None),
            "mlp": lambda b: b.ffn,
        }
        marks = {
            name: lambda b: values(b.self_attn.v, b.self_attn.num_heads) for name in ("cross_attn", "audio_attn", "mlp")
        }
        return numbered(network, ("blocks", attention_block, branches, {"values": marks}))

    def references(self, network: nn.Module, cond: dict) -> list[Tensor]:
        """With what Bernini puts behind the video, Phantom's subjects, SCAIL's poses, and the motion before S2V's sound."""
        found = [*super().references(network, cond), *(cond.get("context_latents") or ())]
        subjects, poses, motion = map(cond.get, ("time_dim_concat", "pose_video_latent", "reference_motion"))
        if subjects is not None:
            found.append(subjects)
        if poses is not None and hasattr(network, "patch_embedding_pose"):  # Animate adds its poses to the video
            found.append(poses)
        if motion is not None and hasattr(network, "frame_packer"):  # packed into a frame and a half
            found += [motion[:, :, :1], motion[:, :, :1, : motion.shape[3] // 2]]
        return found


@returns("x")
def attention_block(
    self: nn.Module,
    branch: Branch,
    x: Tensor,
    e: Tensor,
    freqs: Tensor,
    context: Tensor,
    context_img_len: int | None = 257,
    transformer_options: dict = NO_OPTIONS,
    audio: Tensor | None = None,
) -> Tensor:
    from comfy.ldm.wan.model import repeat_e
    from comfy.model_management import cast_to

    table = cast_to(self.modulation, dtype=x.dtype, device=x.device)  # (1, 6, D)
    found = (table + e).chunk(6, dim=1) if e.ndim < 4 else (table + e).unbind(2)  # e (B, 6, D) or (B, T, 6, D)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = found
    steady = gate_m.shape[1] == 1  # else each frame has its own noise level

    def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(repeat_e(shift, x), x, 1 + repeat_e(scale, x))

    def attention(x: Tensor) -> Tensor:
        return self.self_attn(modulate(self.norm1(x), shift_a, scale_a), freqs, transformer_options=transformer_options)

    def cross_attention(x: Tensor) -> Tensor:
        return self.cross_attn(
            self.norm3(x), context, context_img_len=context_img_len, transformer_options=transformer_options
        )

    def audio_attention(x: Tensor) -> Tensor:
        of_audio = self.audio_cross_attn_wrapper
        return of_audio.audio_cross_attn(of_audio.norm1_audio(x), audio, transformer_options=transformer_options)

    def mlp(x: Tensor) -> Tensor:
        return self.ffn(modulate(self.norm2(x), shift_m, scale_m))

    x = torch.addcmul(x, repeat_e(gate_a, x), branch("attn", attention, x))
    x = x + branch("cross_attn", cross_attention, x, tokenwise=True)
    if audio is not None:
        x = x + branch("audio_attn", audio_attention, x)
    return torch.addcmul(x, repeat_e(gate_m, x), branch("mlp", mlp, x, tokenwise=steady))
