"""The Wan 2.x family."""

from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def wan(
    kind: str = "WanModel",
    words: int = 5,
    frames: int = 3,
    per_frame: bool = False,
    picture: int = 0,
    reference: tuple = (),
    audio: bool = False,
    speech: bool = False,
    controls: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32, latents of `frames` x 4 x 6 in patches of 2 x 2.

    Optional inputs: one noise level `per_frame`, `picture` tokens of a CLIP image, a `reference` latent of that shape,
    HuMo's `audio`, `speech` that is added between blocks, the number of VACE's `controls`.
    """
    import comfy.ops
    from comfy.ldm.wan import model

    settings = {
        "in_dim": 4, "out_dim": 4, "dim": 64, "ffn_dim": 96, "freq_dim": 32, "text_dim": 24,
        "num_heads": 2, "num_layers": 3,
    }  # fmt: skip
    network = opened(getattr(model, kind)(**settings | changes, dtype=dtype, operations=comfy.ops.disable_weight_init))

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed)).to(dtype)

    def inputs(step: int) -> dict:
        timestep = torch.tensor([900.0, 700.0]) - 100 * step
        named = {
            "x": noise(step, 4, frames, 4, 6),
            "timestep": timestep[:, None] * torch.arange(frames) / frames if per_frame else timestep,
            "context": noise(99, words, 24),
            "transformer_options": {},
        }
        if picture:
            named["clip_fea"] = noise(98, picture, 1280)
        if reference:
            named["reference_latent"] = noise(97, *reference)
        if audio:
            named["audio_embed"] = noise(96, frames, 8, 5, 1280)
        if speech:
            named |= {"audio_embed": noise(94, 25, 24, 16), "control_video": noise(93, 4, frames, 4, 6)}
        if controls:
            named |= {"vace_context": noise(95, controls, 6, frames, 4, 6), "vace_strength": [1.0, 0.5]}
        return named

    return network, inputs


CASES = {
    "wan": wan,
    "wan bfloat16": lambda: wan(dtype=torch.bfloat16),
    "wan no norms of q, k and text": lambda: wan(qk_norm=False, cross_attn_norm=False, words=1),
    "wan noise level per frame": lambda: wan(per_frame=True),
    "wan image to video": lambda: wan(model_type="i2v", picture=4),
    "wan image to video, first and last picture": lambda: wan(
        model_type="i2v", picture=4, flf_pos_embed_token_number=4
    ),
    "wan image to video without a picture": lambda: wan(model_type="i2v", picture=0),
    "wan reference latent": lambda: wan(in_dim_ref_conv=4, reference=(4, 4, 6), words=7),
    "wan reference latent, noise level per frame": lambda: wan(
        in_dim_ref_conv=4, reference=(4, 4, 6), frames=4, per_frame=True
    ),
    "wan camera": lambda: wan("CameraWanModel", in_dim_control_adapter=2, frames=2),
    "wan vace, two controls": lambda: wan("VaceWanModel", vace_layers=1, vace_in_dim=6, controls=2),
    "wan vace, a control after every block": lambda: wan("VaceWanModel", vace_layers=3, vace_in_dim=6, controls=2),
    "wan speech to video": lambda: wan("WanModel_S2V", reference=(4, 1, 4, 6)),
    "wan speech to video, with speech": lambda: wan(
        "WanModel_S2V", reference=(4, 1, 4, 6), speech=True, audio_dim=24, audio_inject_layers=[0, 2], cond_dim=4
    ),
    "wan humo": lambda: wan("HumoWanModel", audio=True, reference=(4, 1, 4, 6)),
}
