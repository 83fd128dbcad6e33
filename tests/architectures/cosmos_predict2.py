"""Cosmos-Predict2 and Anima."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from . import generator, opened

WIDTH, TEXT = 64, 24


def cosmos(
    words: int = 5,
    frames: int = 3,
    per_frame: bool = False,
    fps: float | None = None,
    padded: bool = False,
    ids: int = 0,
    control: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Two heads of 32, latents of `frames` x 8 x 6 in patches of 2 x 2.

    Optional inputs: one noise level `per_frame`, frames per second, a mask of what is `padded`, `ids` of words for Anima's
    text adapter, Anima's LLLite as `control` of these layers.
    """
    import comfy.ops
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    settings = {
        "max_img_h": 16, "max_img_w": 16, "max_frames": 8, "in_channels": 4, "out_channels": 4, "patch_spatial": 2,
        "patch_temporal": 1, "model_channels": WIDTH, "num_blocks": 3, "num_heads": 2, "mlp_ratio": 2.0,
        "crossattn_emb_channels": TEXT, "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16,
    }  # fmt: skip
    made = {"dtype": dtype, "operations": comfy.ops.disable_weight_init}
    network = MiniTrainDIT(**settings | changes, **made)
    if ids:
        from comfy.ldm.anima.model import Anima, LLMAdapter

        network.__class__ = Anima  # which makes a text adapter of one size only, and a large one
        network.llm_adapter = LLMAdapter(TEXT, TEXT, TEXT, num_layers=1, num_heads=2, **made)
    network = opened(network)
    patches = lllite(control) if control else {}

    def inputs(step: int) -> dict:
        rng, timestep = generator(99), torch.tensor([0.9, 0.7]) - 0.1 * step
        given = {
            "x": torch.randn(2, 4, frames, 8, 6, generator=generator(step)).to(dtype),
            "timesteps": timestep[:, None] * torch.arange(frames) / frames if per_frame else timestep,
            "context": torch.randn(2, words, TEXT, generator=rng).to(dtype),
            "fps": fps,
            "padding_mask": torch.randint(2, (2, 1, 16, 12), generator=rng).to(dtype) if padded else None,
            "transformer_options": {"patches": patches} if patches else {},
        }
        if ids:
            given["t5xxl_ids"] = torch.randint(32128, (2, ids), generator=rng)
            given["t5xxl_weights"] = torch.rand(2, ids, 1, generator=rng).to(dtype)
        return given

    return network, inputs


def lllite(layers: tuple[str, ...]) -> dict:
    """What the host's node Apply Anima LLLite puts beside a model."""
    import comfy.ops

    host = pytest.importorskip("comfy.ldm.anima.lllite", reason="newer than this host")
    of_picture = {"conv1": (4, 3), "conv3": (8, 4), "proj": (8, 8)}
    weights = {f"lllite_conditioning1.{n}.weight": torch.zeros(*shape, 1, 1) for n, shape in of_picture.items()}
    for name in (f"lllite_dit_blocks_{i}_{layer}" for i in range(3) for layer in layers):
        weights |= {f"{name}.down.weight": torch.zeros(8, WIDTH), f"{name}.cond_to_film.weight": torch.zeros(16, 8)}
    model = opened(host.AnimaLLLite(weights, {}, dtype=torch.float32, operations=comfy.ops.manual_cast))
    picture = torch.rand(1, 32, 24, 3, generator=generator(97))
    patch = host.AnimaLLLitePatch(SimpleNamespace(model=model), picture, None, 0.5, 1.0, 0.0)
    of_self = {part: f"self_attn_{part}_proj" for part in "qkv"}
    return {
        "post_input": [patch],
        "attn1_patch": [host.AnimaLLLiteAttentionPatch(patch, of_self)],
        "attn2_patch": [host.AnimaLLLiteAttentionPatch(patch, {"q": "cross_attn_q_proj"})],
        "mlp_patch": [host.AnimaLLLiteMLPPatch(patch)],
    }


LLLITE = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "cross_attn_q_proj", "mlp_layer1")

CASES = {
    "cosmos predict2": cosmos,
    "cosmos predict2 bfloat16": lambda: cosmos(dtype=torch.bfloat16),
    "cosmos predict2 float16": lambda: cosmos(dtype=torch.float16, frames=1),
    "cosmos predict2 noise level per frame": lambda: cosmos(per_frame=True, fps=16.0, words=1),
    "cosmos predict2 plain modulation": lambda: cosmos(use_adaln_lora=False, concat_padding_mask=False),
    "cosmos predict2 positions per block": lambda: cosmos(extra_per_block_abs_pos_emb=True, padded=True),
    "cosmos predict2 two frames per patch": lambda: cosmos(patch_temporal=2, frames=4),
    "anima": lambda: cosmos(frames=1, ids=7),
    "anima lllite": lambda: cosmos(frames=1, ids=7, control=LLLITE),
    "anima lllite of the mlp": lambda: cosmos(frames=1, control=LLLITE[-1:]),
}
