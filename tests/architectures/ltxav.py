"""LTX-2."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened

LATER = {"caption_proj_before_connector": True, "cross_attention_adaln": True, "apply_gated_attention": True}
"""What LTX-2.3 does otherwise."""


def ltxav(
    words: int = 5,
    sound: int = 6,
    masked: bool = False,
    per_token: bool = False,
    guided: bool = False,
    reference: int = 0,
    options: dict | None = None,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32 for two frames of 3 x 4 tokens, of which the second may be a guide that is attended to by half; two
    of 24 for a sound of so many frames, before which may be a reference.

    per_token: the first frame has less noise, as in image to video, and so has the end of the sound.
    """
    import comfy.ops
    from comfy.ldm.lightricks.av_model import LTXAVModel

    if reference and "ref_audio" not in inspect.getsource(LTXAVModel):
        pytest.skip("newer than this host")

    class Packed(LTXAVModel):
        """Puts out one latent, as the host's own caller makes of the two."""

        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return out if isinstance(out, torch.Tensor) else torch.cat([part.flatten(1) for part in out], dim=1)

    settings = {
        "in_channels": 8, "cross_attention_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2,
        "audio_cross_attention_dim": 48, "audio_attention_head_dim": 24, "audio_num_attention_heads": 2,
        "caption_channels": 24, "num_layers": 3, "connector_attention_head_dim": 8, "connector_num_attention_heads": 1,
    }  # fmt: skip
    network = opened(Packed(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))
    width = 64 + 48 if changes.get("caption_proj_before_connector") else 24 * 2

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        timestep = torch.tensor([0.9, 0.9]) - 0.1 * step  # the host takes the highest of all rows for some gates
        frames = torch.tensor([0.5, 1]).repeat_interleave(12)
        parts = [noise(step, 2, 8, 2, 3, 4), noise(step + 50, 2, 8, sound, 16)]
        mask = torch.ones(2, words, dtype=torch.long)
        mask[:, : words // 2] = 0
        named = {
            "x": parts if sound else parts[:1],
            "timestep": [timestep] * 2,
            "context": noise(99, 2, words, width),
            "attention_mask": mask if masked else None,
            "transformer_options": options or {},
        }
        if per_token:
            ends = torch.linspace(1, 0.5, sound)
            named["timestep"] = [(timestep[:, None] * levels)[..., None] for levels in (frames, ends)]
        if reference:
            named["ref_audio"] = {"tokens": noise(97, 1, reference, 128)}
        if guided:
            hidden = torch.ones(2, 1, 2, 3, 4)
            hidden[:, :, 1, 0] = -1  # these tokens are left out
            named |= {
                "keyframe_idxs": torch.rand(2, 3, 12, 2, generator=generator(98)) * 32,
                "denoise_mask": hidden,
                "guide_attention_entries": [{"pre_filter_count": 12, "strength": 0.5}],
            }
        return named

    return network, inputs


CASES = {
    "ltx-2": ltxav,
    "ltx-2 bfloat16": lambda: ltxav(dtype=torch.bfloat16, masked=True),
    "ltx-2 masked text": lambda: ltxav(words=6, masked=True),
    "ltx-2 without sound": lambda: ltxav(sound=0),
    "ltx-2 noise level per frame": lambda: ltxav(per_token=True, words=1, sound=1),
    "ltx-2 guide frame": lambda: ltxav(guided=True, per_token=True, use_middle_indices_grid=True),
    "ltx-2 reference sound": lambda: ltxav(reference=3),
    "ltx-2 streams apart": lambda: ltxav(options={"a2v_cross_attn": False, "v2a_cross_attn": False}),
    "ltx-2 sound alone": lambda: ltxav(options={"run_vx": False}),
    "ltx-2 video alone": lambda: ltxav(options={"run_ax": False}),
    "ltx-2.3": lambda: ltxav(**LATER, rope_type="split", caption_projection_first_linear=False),
    "ltx-2.3 bfloat16": lambda: ltxav(**LATER, dtype=torch.bfloat16),
    "ltx-2.3 noise level per frame": lambda: ltxav(**LATER, per_token=True, masked=True, reference=2),
    "ltx-2.3 without sound": lambda: ltxav(**LATER, sound=0, causal_temporal_positioning=True),
}
